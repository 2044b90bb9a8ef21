"""From the original's module names to exact module paths of a given architecture.

A name such as ``query`` stands for one linear layer in every encoder layer. It is looked up in a
table by architecture and matched against the whole path, never as a substring, so that
``layer.output`` cannot mean ``attention.output`` as well. The pooler and the classifier are
trained whole and are never a target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from adalora.adapters.bottleneck import bottlenecks
from adalora.adapters.head import base_path, is_head
from adalora.errors import UserError
from adalora.validation import match_patterns
from loralib.base import replacing_loses

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
PATTERN_PREFIX = "re:"


def _names(layer: str, *modules: str) -> dict[str, str]:
    """Name of ``NAMES`` -> path of its module below the encoder; ``*`` stands for a number."""
    return {name: f"{layer}.{module}" for name, module in zip(NAMES, modules, strict=True)}


_OUTPUTS = ("intermediate.dense", "output.dense", "attention.output.dense")
_BERT = _names("encoder.layer.*", *(f"attention.self.{m}" for m in NAMES[:3]), *_OUTPUTS)

#: ``config.model_type`` -> name -> path. Names of one module are those of one fused matrix.
ARCHITECTURES: dict[str, dict[str, str]] = {
    "albert": _names(
        # One layer, used again and again.
        "encoder.albert_layer_groups.*.albert_layers.*",
        *("attention.query", "attention.key", "attention.value"),
        *("ffn", "ffn_output", "attention.dense"),
    ),
    "bert": _BERT,
    "camembert": _BERT,
    "deberta": _names("encoder.layer.*", *("attention.self.in_proj",) * 3, *_OUTPUTS),
    "deberta-v2": _names(
        "encoder.layer.*", *(f"attention.self.{m}_proj" for m in NAMES[:3]), *_OUTPUTS
    ),
    "distilbert": _names(
        "transformer.layer.*",
        *("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        *("ffn.lin1", "ffn.lin2", "attention.out_lin"),
    ),
    "electra": _BERT,
    "modernbert": _names("layers.*", *("attn.Wqkv",) * 3, "mlp.Wi", "mlp.Wo", "attn.Wo"),
    "mpnet": _names(
        "encoder.layer.*",
        *("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        *("intermediate.dense", "output.dense", "attention.attn.o"),
    ),
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


def find_targets(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The linear layers that ``names`` stand for.

    Args:
        model: a loaded transformers model, with or without a task head.
        names: of ``NAMES``, for the ``ARCHITECTURES``; or ``re:PATTERN`` for any, where the regular
            expression must match the *whole* path of a linear layer (``re.fullmatch``), so
            ``re:.*\\.lin[12]`` takes every layer so named.

    Returns:
        Module path -> layer, in the model's order, each once however often it was named.

    Raises:
        UserError: if a name is unknown or matches nothing, no name is given, a pattern is not a
            regular expression, part of a fused query-key-value matrix is asked for, or another
            layer cannot take the place of one that is named.
    """
    if isinstance(names, str):
        names = names.split(",")
    wanted = [name.strip() for name in names if name.strip()]
    if not wanted:
        raise UserError(f"No module to adapt was named; choose from {', '.join(NAMES)}.")
    linear = _linear_layers(model)
    known = [name for name in wanted if not name.startswith(PATTERN_PREFIX)]
    paths: set[str] = set()
    for name in wanted:
        if name.startswith(PATTERN_PREFIX):
            paths |= _match_pattern(model, linear, name)
        else:
            paths |= _match_name(model, linear, name, known)
    found = {path: module for path, module in linear.items() if path in paths}
    for path, module in found.items():
        check_replaceable(model, path, module)
    return found


def check_replaceable(model: nn.Module, path: str, module: nn.Module) -> None:
    """Refuse by a UserError to put an adapter at ``path`` if it, or the layer, would be ignored."""
    loss = replacing_loses(module)
    if isinstance(model.get_submodule(path.rpartition(".")[0]), nn.TransformerEncoderLayer):
        loss = "nn.TransformerEncoderLayer reads its weight without calling it in evaluation"
    if loss is not None:
        raise UserError(f"{path} cannot be adapted: {loss}; name other layers.")


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer outside the head and outside a bottleneck adapter, in model order."""
    inside = tuple(f"{path}." for path in bottlenecks(model))
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not is_head(model, path)
        and not path.startswith(inside)
    }


def _match_pattern(model: nn.Module, linear: dict[str, nn.Module], name: str) -> set[str]:
    pattern = name.removeprefix(PATTERN_PREFIX)
    every = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    try:
        (answers,) = match_patterns([pattern], every)
    except UserError as error:
        raise UserError(f"{name!r}: {error}.") from error
    matched = [path for path, answer in zip(every, answers, strict=True) if answer]
    if found := linear.keys() & set(matched):
        return found
    if in_head := [path for path in matched if is_head(model, path)]:
        raise UserError(
            f"{name!r} matches only {', '.join(in_head)}, which is the head: it is trained whole "
            "and never adapted. Name layers of the encoder."
        )
    raise UserError(
        f"{name!r} matches no linear layer (the whole path must match). There are: {_kinds(linear)}"
    )


def _match_name(
    model: nn.Module, linear: dict[str, nn.Module], name: str, wanted: Sequence[str]
) -> set[str]:
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    table = ARCHITECTURES.get(model_type)
    if table is None:
        raise UserError(
            f"The names {', '.join(NAMES)} are known for {', '.join(ARCHITECTURES)}, not for "
            f"{model_type!r}; give re:PATTERN over its linear layers instead: {_kinds(linear)}"
        )
    if name not in table:
        raise UserError(
            f"Unknown module {name!r}; choose from {', '.join(NAMES)}, or re:PATTERN over the "
            f"linear layers: {_kinds(linear)}"
        )
    suffix = table[name]
    fused = [other for other, path in table.items() if path == suffix]
    absent = [other for other in fused if other not in wanted]
    if absent:
        raise UserError(
            f"{model_type} computes {', '.join(fused)} by one matrix, so {name!r} cannot be "
            f"adapted without {' and '.join(absent)}; name all of them or none."
        )
    base = base_path(model)
    whole = re.escape(f"{base}.{suffix}" if base else suffix)
    pattern = re.compile(whole.replace(r"\*", r"\d+"))
    found = {path for path in linear if pattern.fullmatch(path)}
    if not found:
        raise UserError(
            f"{name!r} should be {suffix} in {model_type}, and this {type(model).__name__} has no "
            f"such linear layer. There are: {_kinds(linear)}"
        )
    return found


def _kinds(linear: dict[str, nn.Module]) -> str:
    """The linear layers, with the numbers of equal ones as ``*``, so that the list stays short."""
    kinds = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in linear)
    return ", ".join(kinds) or "none"

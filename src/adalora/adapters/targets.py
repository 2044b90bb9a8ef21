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

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
PATTERN_PREFIX = "re:"

_OUTPUTS = {
    "intermediate": "intermediate.dense",
    "layer.output": "output.dense",
    "attention.output": "attention.output.dense",
}
_BERT = {name: f"attention.self.{name}" for name in ("query", "key", "value")} | _OUTPUTS
_DEBERTA_V2 = {name: f"attention.self.{name}_proj" for name in ("query", "key", "value")} | _OUTPUTS
# DeBERTa v1 computes query, key and value by one matrix, so the three names mean one module.
_DEBERTA_V1 = dict.fromkeys(("query", "key", "value"), "attention.self.in_proj") | _OUTPUTS

# config.model_type -> name -> path below <base>.encoder.layer.<number>
_ARCHITECTURES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "deberta": _DEBERTA_V1,
    "deberta-v2": _DEBERTA_V2,
    "electra": _BERT,
    "roberta": _BERT,
}


def find_targets(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The linear layers that ``names`` stand for.

    Args:
        model: a loaded transformers model, with or without a task head.
        names: of ``NAMES``, for DeBERTa v1 to v3, BERT, RoBERTa and ELECTRA; or ``re:PATTERN`` for
            any architecture, where the regular expression must match the *whole* path of a linear
            layer (``re.fullmatch``), so ``re:.*\\.lin[12]`` takes every layer so named.

    Returns:
        Module path -> layer, in the model's order, each once however often it was named.

    Raises:
        UserError: if a name is unknown or matches nothing, no name is given, a pattern is not a
            regular expression, or part of DeBERTa v1's fused query-key-value matrix is asked for.
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
    return {path: module for path, module in linear.items() if path in paths}


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
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"{name!r} is not a regular expression: {error}.") from error
    found = {path for path in linear if compiled.fullmatch(path)}
    if found:
        return found
    in_head = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and is_head(model, path) and compiled.fullmatch(path)
    ]
    if in_head:
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
    table = _ARCHITECTURES.get(model_type)
    if table is None:
        raise UserError(
            f"The names {', '.join(NAMES)} are known for {', '.join(_ARCHITECTURES)}, not for "
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
    prefix = re.escape(f"{base}.") if base else ""
    pattern = re.compile(rf"{prefix}encoder\.layer\.\d+\.{re.escape(suffix)}")
    found = {path for path in linear if pattern.fullmatch(path)}
    if not found:
        raise UserError(
            f"{name!r} should be {suffix} in every encoder layer of {model_type}, and this "
            f"{type(model).__name__} has no such linear layer. There are: {_kinds(linear)}"
        )
    return found


def _kinds(linear: dict[str, nn.Module]) -> str:
    """The linear layers, with the numbers of equal ones as ``*``, so that the list stays short."""
    kinds = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in linear)
    return ", ".join(kinds) or "none"

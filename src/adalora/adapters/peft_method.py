"""Any method of PEFT on a loaded classifier, from a JSON file: the floor to compare with.

Such a run is a baseline, so what it leaves is PEFT's own adapter folder, written and read by PEFT.

The file holds what PEFT's own ``adapter_config.json`` holds: ``peft_type`` and the arguments of
that method's configuration class. In addition, a list of ``target_modules`` may hold this
project's names (``query``, ``layer.output`` ...), which mean the same matrices in every
architecture; pooler and classifier are always in ``modules_to_save``, so that the head is trained
whole and never adapted (PEFT's ``dense`` would take in the pooler); AdaLoRA's ``total_step`` is the
run's real number of steps, and its ``tinit`` and ``tfinal`` may be fractions of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from adalora.adapters.head import base_path, head_modules, is_head
from adalora.adapters.targets import NAMES, find_targets
from adalora.errors import UserError
from adalora.shell import program
from adalora.storage.files import read_json, refuse_not_finite, write_json
from adalora.validation import match_patterns

# What a saved adapter's file says about where it came from, and nothing of the method.
_OF_A_SAVED_ADAPTER = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "rank_pattern",
    "revision",
)
# Where PEFT looks for regular expressions.
_PATTERNS = (
    *("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern"),
    *("rank_pattern", "alpha_pattern"),
)
_NAMES_IN_PRINT = {"LORA": "LoRA", "ADALORA": "AdaLoRA", "IA3": "IA3"}


def is_peft(model: nn.Module) -> bool:
    """Whether ``model`` is one that PEFT has wrapped."""
    return isinstance(getattr(model, "peft_config", None), Mapping)


def peft_method_name(values: Mapping[str, Any]) -> str:
    """The method in a word or two, for summaries."""
    kind = str(values["peft_type"])
    return f"PEFT {_NAMES_IN_PRINT.get(kind, kind.replace('_', ' ').capitalize())}"


def read_peft_values(file: str | Path) -> dict[str, Any]:
    """The content of a method's file; what its values mean is checked by ``add_peft``.

    Raises:
        UserError: if it is absent, no JSON object, or names no method.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--peft_config {str(file)!r} is no file; name a JSON file.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--peft_config {str(file)!r} is no JSON file: {error}.") from error
    if not isinstance(values, dict) or not isinstance(values.get("peft_type"), str):
        raise UserError(
            f'--peft_config {str(file)!r} needs an object with "peft_type", such as '
            '{"peft_type": "LORA", "r": 2}.'
        )
    values["peft_type"] = values["peft_type"].upper()
    return values


def add_peft(
    model: nn.Module, values: Mapping[str, Any], *, total_steps: int | None, source: str
) -> nn.Module:
    """Wrap ``model`` in PEFT's model of the method; the head trains whole, the rest is frozen.

    Args:
        model: a loaded classifier without adapters.
        values: from ``read_peft_values``; left as they are.
        total_steps: optimizer steps of the run, for AdaLoRA's schedule; None if none will be made.
        source: the file, for messages.

    Returns:
        The wrapped model (``peft.PeftModel``); ``model`` itself now holds the adapters.

    Raises:
        UserError: if PEFT is not installed, or refuses the configuration or the model.
    """
    _require_peft("--peft_config needs peft,")
    import peft

    arguments = _arguments(model, values, source)
    if values["peft_type"] == "ADALORA":
        _set_schedule(arguments, total_steps, source)
    with warnings.catch_warnings():
        # Of PEFT's on fields that do not matter here; what it refuses, it raises.
        warnings.simplefilter("ignore")
        try:
            config = peft.get_peft_config(arguments)
            wrapped: nn.Module = peft.get_peft_model(model, config)  # type: ignore[arg-type]
        except UserError:
            raise
        except Exception as error:  # PEFT has no exception of its own, and asserts as well
            raise UserError(
                f"--peft_config {source}: PEFT refuses it: {_reason(error):.300}"
            ) from error
    if not any(p.requires_grad and not is_head(wrapped, n) for n, p in wrapped.named_parameters()):
        raise UserError(f"--peft_config {source} trains nothing of the encoder; change it.")
    return wrapped


def _require_peft(wanted: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise UserError(
            f"{wanted} not installed here: type {program('pip')} install 'adalora[peft]'."
        )


def _reason(error: Exception) -> str:
    return " ".join((str(error) or repr(error)).split())


def _arguments(model: nn.Module, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Arguments of PEFT's configuration class, checked by name, ours filled in."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = values["peft_type"]
    classes = {str(getattr(key, "value", key)): c for key, c in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in classes:
        near = difflib.get_close_matches(kind, classes, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(classes))}."
        raise UserError(f"--peft_config {source}: PEFT has no peft_type {kind!r}; {hint}")
    if values.get("task_type", "SEQ_CLS") not in ("SEQ_CLS", None):
        raise UserError(
            f"--peft_config {source} has task_type {values['task_type']!r}; text classification "
            "is SEQ_CLS, or leave it out."
        )
    inputs = inspect.signature(model.get_submodule(base_path(model)).forward).parameters
    if kind == "PREFIX_TUNING" and "past_key_values" not in inputs:
        raise UserError(
            f"--peft_config {source}: PREFIX_TUNING needs a model that takes past_key_values, and "
            f"{type(model).__name__} does not; take PROMPT_TUNING or P_TUNING."
        )
    known = [field.name for field in dataclasses.fields(classes[kind]) if field.init]
    for name in values:
        if name not in known and name not in _OF_A_SAVED_ADAPTER:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "take it out."
            raise UserError(f"--peft_config {source}: {kind} has no argument {name!r}; {hint}")
    arguments = {name: v for name, v in values.items() if name not in _OF_A_SAVED_ADAPTER}
    arguments["task_type"] = "SEQ_CLS"
    if "modules_to_save" in known:
        wanted = [*head_modules(model), *(arguments.get("modules_to_save") or [])]
        arguments["modules_to_save"] = list(dict.fromkeys(wanted))
    if not arguments.get("layers_to_transform"):
        for name in ("target_modules", "feedforward_modules"):
            if isinstance(arguments.get(name), list):
                arguments[name] = _paths(model, arguments[name])
    return arguments


def _paths(model: nn.Module, names: list[str]) -> list[str]:
    """This project's names as exact paths; others stay what they mean to PEFT."""
    known = [name for name in names if name in NAMES]
    paths = list(find_targets(model, known)) if known else []
    return list(dict.fromkeys([*paths, *(name for name in names if name not in NAMES)]))


def _set_schedule(arguments: dict[str, Any], total_steps: int | None, source: str) -> None:
    """AdaLoRA's step numbers for a run of this length; none is pruned where none is trained."""
    start, end = arguments.get("init_r", 12), arguments.get("target_r", 8)
    if not isinstance(start, int) or not isinstance(end, int) or not 0 <= end < start:
        # With equal ranks PEFT asks for the 0th smallest score, and torch raises.
        raise UserError(
            f"--peft_config {source}: AdaLoRA prunes from init_r down to target_r, so target_r "
            f"({end!r}) must be below init_r ({start!r}); for a fixed rank take LORA."
        )
    if total_steps is None:
        arguments.update(total_step=1, tinit=0, tfinal=0)
        return
    for name in ("tinit", "tfinal"):
        value = arguments.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"--peft_config {source} has {name} {value!r}; it must be at least 0.")
        arguments[name] = round(value * total_steps) if 0 < value < 1 else int(value)
    if arguments["tinit"] + arguments["tfinal"] >= total_steps:
        raise UserError(
            f"--peft_config {source} leaves no step to prune in: tinit {arguments['tinit']} and "
            f"tfinal {arguments['tfinal']} fill the {total_steps} steps of this run; lower them, "
            "or give fractions such as 0.1 and 0.3."
        )
    arguments["total_step"] = total_steps


#: Tensors first.
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")


def write_peft_adapter(model: nn.Module, folder: Path) -> None:
    """Have PEFT save ``model``, a ``peft.PeftModel``, to ``folder``; NaN is refused."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    refuse_not_finite(trained, folder)
    with warnings.catch_warnings():
        # PEFT takes a matrix that AdaLoRA pruned to rank 0 for one that was cut up by DeepSpeed.
        warnings.filterwarnings("ignore", message=".*invalid shape")
        cast(Any, model).save_pretrained(str(folder))
    # PEFT's own card; ours is written with the description.
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT writes sets, whose order differs from run to run.
    config = read_json(folder / PEFT_FILES[1])
    for name, value in config.items():
        if name in ("target_modules", "feedforward_modules") and isinstance(value, list):
            config[name] = sorted(value)
    write_json(folder / PEFT_FILES[1], config)


def check_peft_patterns(model: nn.Module, config: Mapping[str, Any], source: str | Path) -> None:
    """Refuse regular expressions of an adapter that PEFT could not match to an end.

    Args:
        model: that the adapter goes on.
        config: the content of an ``adapter_config.json``.
        source: for messages.

    Raises:
        UserError: if one is no regular expression, or they take too long.
    """
    paths = [path for path, _ in model.named_modules() if path]
    for name in _PATTERNS:
        value = config.get(name)
        patterns = [value] if isinstance(value, str) else []
        if name == "layers_pattern" and isinstance(value, str | list):
            patterns = [rf".*\.{one}\.(\d+)\..*" for one in patterns or value]
        elif isinstance(value, Mapping) and config.get("peft_type") != "ADALORA":
            patterns = [rf"(.*\.)?({one})" for one in value]
        try:
            match_patterns(patterns, paths)
        except UserError as error:
            raise UserError(
                f"{source} has a pattern in {name} that is refused: {error}."
            ) from error


def load_peft_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``model``, a base with a head, wrapped in what ``folder`` holds.

    Returns:
        A ``peft.PeftModel`` in evaluation mode, which is called like a classifier, without labels:
        PEFT's AdaLoRA fails on them in this state.

    Raises:
        UserError: if PEFT is not installed or refuses the folder.
    """
    _require_peft(f"{folder} holds an adapter of PEFT, and peft is")
    import peft

    check_peft_patterns(model, read_json(folder / PEFT_FILES[1]), folder)
    try:
        with warnings.catch_warnings():
            # PEFT looks for LoRA's kind of rank_pattern in AdaLoRA's, and does not find it.
            warnings.simplefilter("ignore")
            loaded = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # PEFT has no exception of its own
        raise UserError(
            f"PEFT cannot read the adapter in {folder}: {_reason(error):.300}"
        ) from error
    return cast(PreTrainedModel, loaded)

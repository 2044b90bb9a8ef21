"""From a command line to the argument dataclasses, with errors that help.

One file of the same flags may stand in for them (``run_glue.py run.json`` or ``run.yaml``), as in
the original. An unknown flag names its nearest neighbour; a flag that existed in transformers 4.4
and has no meaning any more is refused by name, never ignored.
"""

from __future__ import annotations

import difflib
import json
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from transformers import HfArgumentParser

from adalora.errors import UserError
from adalora.presets import find_preset, remaining_flags, untuned
from adalora.training.arguments.inputs import DataArguments, ModelArguments
from adalora.training.arguments.method import MethodArguments
from adalora.training.arguments.training import AdaLoraTrainingArguments

#: Flags of the original's transformers fork that cannot mean anything today, and why.
RETIRED_FLAGS = {
    "fp16_opt_level": "it chose an NVIDIA apex level; use --fp16 or --bf16",
    "fp16_backend": "it chose between apex and torch; torch's autocast is the only one, --fp16",
    "tpu_num_cores": "TPUs are not supported",
    "tpu_metrics_debug": "TPUs are not supported",
    "past_index": "it served XLNet's memory and no supported model has one",
    "sharded_ddp": "it used fairscale; --shard_base divides the base by torch's FSDP",
    "logging_dir": "TensorBoard records go to log/ under --root_output_dir",
}

EPILOG = """examples:
  run_glue.py --model_name_or_path nano --task_name mini-sst2 --do_train --do_eval \\
      --apply_lora --apply_adalora --lora_type svd --lora_r 4 --target_rank 2 \\
      --init_warmup 0.1 --final_warmup 0.3 --learning_rate 2e-3
  run_glue.py --model_name_or_path microsoft/deberta-v3-base --data_dir GLUE --task_name rte ...
  run_glue.py --preset rte/adalora-0.3M --data_dir GLUE --root_output_dir output/rte
  run_glue.py run.json      the same flags as a JSON or YAML file
"""


class RunArguments(NamedTuple):
    """All flags of a run, in four groups."""

    model: ModelArguments
    method: MethodArguments
    data: DataArguments
    training: AdaLoraTrainingArguments


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Every flag with its default, and the examples as they stand."""


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"The command line was not understood: {message}.")


def build_parser(program: str | None = None) -> HfArgumentParser:
    """The parser behind ``parse_arguments``; ``--help all`` shows its groups."""
    groups: Any = [ModelArguments, MethodArguments, DataArguments, AdaLoraTrainingArguments]
    return _Parser(
        groups,
        prog=program,
        usage="%(prog)s FLAGS...",
        description="Fine-tune a pretrained encoder on GLUE or on your own data.",
        epilog=EPILOG,
        formatter_class=_HelpFormatter,
        # A shortened flag would change its meaning with the next flag that begins alike.
        allow_abbrev=False,
    )


def parse_arguments(
    argv: Sequence[str] | None = None, *, program: str | None = None
) -> RunArguments:
    """Parse ``argv`` (default: the process's own) or the one file that it names.

    Raises:
        UserError: on an unknown or refused flag, a value of the wrong type, or values that
            contradict one another.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(program)
    if len(arguments) == 1 and not arguments[0].startswith("-"):
        return RunArguments(*_parse_file(parser, Path(arguments[0])))
    defaults = _defaults(_given(arguments))
    # As words, which argparse reads as it reads the command line's.
    parser.set_defaults(**{name: str(value) for name, value in defaults.items()})
    for action in parser._actions:
        action.required = action.required and action.dest not in defaults
    parsed = parser.parse_args_into_dataclasses(args=arguments, look_for_args_file=False)
    return RunArguments(*parsed)


def _parse_file(parser: HfArgumentParser, path: Path) -> tuple[Any, ...]:
    readers = {".json": json.loads, ".yaml": yaml.safe_load, ".yml": yaml.safe_load}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{str(path)!r} stands where flags should; a file of flags ends in .json or .yaml."
        )
    if not path.is_file():
        raise UserError(f"The file of flags {str(path)!r} does not exist.")
    try:
        values = reader(path.read_text(encoding="utf-8"))
        return tuple(parser.parse_dict(_defaults(values) | values))
    except UserError:
        raise
    except Exception as error:  # every reader raises its own kind for a malformed file
        raise UserError(f"The file of flags {str(path)!r} could not be read: {error}") from error


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Flag -> value, of those flags alone that stand on the command line."""
    parser = build_parser()
    for action in parser._actions:
        action.default, action.required = SUPPRESS, False
    known, remaining = parser.parse_known_args(arguments)
    if remaining:
        _refuse_unknown(parser, remaining)
    return vars(known)


def _defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """What counts where the user says nothing: a preset's flags, or those of AdaLoRA.

    Raises:
        UserError: if there is no such preset.
    """
    if given.get("preset") is not None:
        return remaining_flags(find_preset(str(given["preset"])), given)
    return untuned(given)


def _refuse_unknown(parser: HfArgumentParser, remaining: Sequence[str]) -> NoReturn:
    unknown = next((word for word in remaining if word.startswith("-")), remaining[0])
    if not unknown.startswith("-"):
        raise UserError(f"The word {unknown!r} on the command line belongs to no flag.")
    name = unknown.partition("=")[0]
    retired = RETIRED_FLAGS.get(name.removeprefix("--").replace("-", "_"))
    if retired is not None:
        raise UserError(f"{name} is refused: {retired}.")
    flags = [flag for action in parser._actions for flag in action.option_strings]
    nearest = difflib.get_close_matches(name, flags, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "--help all lists every flag."
    raise UserError(f"There is no flag {unknown}; {hint}")

"""The ``adalora`` command.

    adalora plan FLAGS...    what run_glue.py would do with these flags, without training

Heavy imports happen inside the commands, so that ``adalora --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from adalora import __version__
from adalora.errors import UserError, exit_with_message

__all__ = ["main"]

USAGE = f"""adalora {__version__}: adapt pretrained encoders with very few trained parameters

usage: adalora COMMAND [FLAGS...]

commands:
  plan      show examples, steps, the budget schedule and the parameters of a run, without
            training; takes the flags of examples/text-classification/run_glue.py
  version   print the version

example:
  adalora plan --model_name_or_path nano --task_name mini-sst2 --do_train --apply_lora \\
      --apply_adalora --lora_type svd --lora_r 4 --target_rank 2 \\
      --init_warmup 0.1 --final_warmup 0.3
"""


def _plan(flags: Sequence[str]) -> int:
    from rich.console import Console

    from adalora.loralib_check import require_our_loralib
    from adalora.report import plan_summary

    require_our_loralib()
    from adalora.training import parse_arguments
    from adalora.training.plan import make_plan

    plan = make_plan(parse_arguments(flags, program="adalora plan"))
    Console().print(plan_summary(plan))
    return 1 if plan.problems else 0


def _version(flags: Sequence[str]) -> int:
    print(__version__)
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"plan": _plan, "version": _version}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_with_message(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        return _version([])
    command = COMMANDS.get(words[0])
    if command is None:
        raise UserError(
            f"There is no command {words[0]!r}; the commands are {', '.join(COMMANDS)}."
        )
    return command(words[1:])

"""The ``adalora`` program: finds the command that was asked for, and runs it.

The module of a command is imported when it is called, so that ``adalora --help`` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from adalora import __version__
from adalora.errors import UserError, exit_with_message


class Command(NamedTuple):
    """A command: what it does, and the function of ``adalora.commands`` that takes its flags."""

    text: str
    module: str
    function: str = "main"


COMMANDS = {
    "sweep": Command(
        "many runs from one file: tasks x methods x budgets x seeds, resumed when interrupted",
        "sweep",
    ),
    "train": Command("train, evaluate and predict; run_glue.py, with its flags", "train"),
    "export": Command(
        "a trained run in another program's format: transformers, PEFT, ONNX, loralib",
        "exchange",
        "export_run",
    ),
    "import": Command("a LoRA or AdaLoRA adapter of PEFT as a run", "exchange", "import_run"),
    "truncate": Command(
        "a trained run with fewer ranks, those of the largest singular values",
        "exchange",
        "truncate",
    ),
    "plan": Command("what a run would do, without training; takes run_glue.py's flags", "plan"),
    "presets": Command(
        "the settings of the paper's table 1 for --preset, each value with its source", "presets"
    ),
    "predict": Command(
        "labels and probabilities for the texts of a file or of the standard input", "predict"
    ),
    "eval": Command("the metrics of a trained model on the validation sets of its task", "eval"),
    "table": Command(
        "mean and deviation over seeds of many runs, next to the paper's figures", "table"
    ),
    "compare": Command(
        "what differs between two runs: flags, versions, scores, ranks, time", "show", "compare"
    ),
    "submit": Command("the zip that the GLUE server takes, from runs on its tasks", "submit"),
    "report": Command("one HTML page on a run or a sweep, with its pictures", "show", "report"),
    "doctor": Command(
        "this machine: its devices, the ways taken on it, whether they are right, how fast",
        "doctor",
    ),
    "info": Command("what a run, an artefact or a training checkpoint is", "info"),
}


def usage() -> str:
    """The text of ``adalora --help``."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.text}" for name, command in COMMANDS.items())
    return f"""adalora {__version__}: adapt pretrained encoders with very few trained parameters

usage: adalora COMMAND [FLAGS...]

commands:
{lines}

'adalora COMMAND --help' explains a command; 'adalora --version' prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_with_message(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("--version", "version"):
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        raise UserError(
            f"There is no command {words[0]!r}; the commands are {', '.join(COMMANDS)}."
        )
    command = COMMANDS[words[0]]
    module = importlib.import_module(f"adalora.commands.{command.module}")
    status: int = getattr(module, command.function)(words[1:])
    return status

"""The ``adalora`` command: finds the module of the command that was asked for, and runs it.

Each command is a module of ``adalora.commands``, imported when it is called, so that
``adalora --help`` answers at once.
"""

from __future__ import annotations

import importlib
import keyword
import sys
from collections.abc import Sequence

from adalora import __version__
from adalora.errors import UserError, exit_with_message

__all__ = ["COMMANDS", "main"]

#: Command -> what it does; its module in ``adalora.commands`` has the same name.
COMMANDS = {
    "sweep": "many runs from one file: tasks x methods x budgets x seeds, resumed when interrupted",
    "train": "train, evaluate and predict; the program of run_glue.py, with its flags",
    "export": "a trained run in another program's format: transformers, PEFT, ONNX, loralib",
    "import": "a LoRA or AdaLoRA adapter of PEFT as a run",
    "plan": "what a run would do, worked out without training; takes run_glue.py's flags",
    "presets": "the settings of the paper's table 1 for --preset, each value with its source",
    "predict": "labels and probabilities for the texts of a file or of the standard input",
    "eval": "the metrics of a trained model on the validation sets of its task",
    "table": "mean and deviation over seeds of many runs, beside the paper's figures",
    "compare": "what differs between two runs: flags, versions, scores, ranks, time",
    "submit": "the zip that the GLUE server takes, from runs on its tasks",
    "report": "one HTML page on a run or a sweep, with its pictures",
    "info": "what a run, an artefact or a training checkpoint is",
}


def usage() -> str:
    """The text of ``adalora --help``."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
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
    module = words[0].replace("-", "_")
    # A keyword cannot name a module that is imported by a statement: import_.py.
    module += "_" * keyword.iskeyword(module)
    command = importlib.import_module(f"adalora.commands.{module}")
    status: int = command.main(words[1:])
    return status

"""``adalora train FLAGS...``: the program of run_glue.py, where there is no checkout."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = [
    "HELP_FILE",
    "PROGRAM",
    "kept_help",
    "main",
    "show_help",
    "write_help",
]


def main(flags: Sequence[str]) -> int:
    """Train, evaluate and predict as the flags say."""

    if show_help(flags, program="adalora train"):
        return 0
    from adalora.validation import require_our_loralib

    require_our_loralib()
    from adalora.training import program

    program.run(flags, program="adalora train")
    return 0


HELP_FILE = Path(__file__).parents[1] / "flags_help.txt"
#: What the text calls the program.
PROGRAM = "run_glue.py"
_MADE_WITH = "transformers "


def kept_help() -> str | None:
    """The text, or None where it was made with another release of transformers."""
    made_with, _, text = HELP_FILE.read_text(encoding="utf-8").partition("\n")
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        return None
    return text if made_with == f"{_MADE_WITH}{installed}" else None


def write_help(text: str) -> None:
    """Keep ``text`` for the installed release of transformers."""
    HELP_FILE.write_text(f"{_MADE_WITH}{version('transformers')}\n{text}", encoding="utf-8")


def show_help(arguments: Sequence[str], *, program: str = PROGRAM) -> bool:
    """Print the help if ``arguments`` ask for it and the kept text may serve; say whether."""
    if not {"-h", "--help"} & set(arguments):
        return False
    text = kept_help()
    if text is not None:
        print(text.replace(PROGRAM, program) if program != PROGRAM else text)
    return text is not None

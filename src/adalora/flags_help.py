"""``run_glue.py --help`` at once: the text of the parser, kept in a file beside this one.

Building the parser imports PyTorch and transformers, which takes seconds. The flags depend on the
release of transformers, so the file names the one it was made with and serves that one alone; with
another the parser is built. ``scripts/write_flags_help.py`` makes the file, and a test holds it
against the parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["HELP_FILE", "PROGRAM", "kept_help", "show_help", "write_help"]

HELP_FILE = Path(__file__).with_suffix(".txt")
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

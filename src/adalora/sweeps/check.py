"""A sweep held against run_glue.py's own parser, before any run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adalora.errors import UserError
from adalora.sweeps.cells import Cell, Spec, words
from adalora.sweeps.spec import read_spec
from adalora.training.parser import build_parser, parse_arguments

__all__ = ["check_cells", "read_sweep_file"]


def read_sweep_file(path: Path, given: Sequence[str]) -> tuple[str, Spec]:
    """The text of a sweep's file, and the sweep that it describes.

    Args:
        path: YAML.
        given: flags of the command line, for every run.

    Raises:
        UserError: at the first mistake.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The sweep's file {path} cannot be read: {error}") from error
    flags = [flag for action in build_parser()._actions for flag in action.option_strings]
    # Each flag is there once more with dashes inside; a file writes it in one way.
    known = [flag[2:] for flag in flags if flag.startswith("--") and "-" not in flag[2:]]
    spec = read_spec(text, source=str(path), known_flags=known, given=_flags(given))
    return text, spec


def _flags(given: Sequence[str]) -> dict[str, Any]:
    """``--name value ...`` as a file would have it; a flag without a value is true."""
    flags: dict[str, Any] = {}
    name = None
    for word in given:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            flags[name] = [value] if equals else []
        elif name is None:
            raise UserError(f"The word {word!r} behind -- belongs to no flag.")
        else:
            flags[name].append(word)
    return {
        name: values[0] if len(values) == 1 else values or True for name, values in flags.items()
    }


def check_cells(cells: Sequence[Cell], *, source: str) -> None:
    """Parse the flags of every cell as its run will; cells that differ by their seed alone once.

    Raises:
        UserError: if there is no cell, two have one id, or the flags of one are refused.
    """
    if not cells:
        raise UserError(f"{source}: every run is excluded, so there is nothing to do.")
    ids: set[str] = set()
    groups: set[str] = set()
    for cell in cells:
        # Folders of some systems do not tell capitals from small letters.
        if cell.id.lower() in ids:
            raise UserError(f"{source}: two runs would have the folder {cell.id}; rename one.")
        ids.add(cell.id.lower())
        if cell.group in groups:
            continue
        groups.add(cell.group)
        try:
            parse_arguments(words(cell.flags), program="adalora sweep")
        except UserError as error:
            raise UserError(f"{source}: the run {cell.id} is refused. {error}") from error

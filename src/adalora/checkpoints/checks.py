"""Checks of single values in a description, each told by the field's name."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any

from adalora.errors import UserError

__all__ = [
    "check_inside",
    "check_kind",
    "check_one_of",
    "check_real",
    "check_strings",
    "check_whole",
]

_KINDS = {str: "a text", dict: "an object", bool: "true or false"}


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse a value of another type."""
    if not isinstance(value, kind):
        raise UserError(f"{name} is {value!r:.80}, and must be {_KINDS[kind]}")


def check_one_of(name: str, value: Any, known: Collection[str]) -> None:
    """Refuse a word that is not known."""
    if value not in known:
        raise UserError(f"{name} {value!r} is unknown; it is one of {', '.join(known)}")


def check_whole(name: str, value: Any, least: int, most: int) -> None:
    """Refuse what is no whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise UserError(f"{name} is {value!r}, and must be a whole number from {least} to {most}")


def check_real(name: str, value: Any, least: float, most: float) -> None:
    """Refuse what is no finite number from ``least`` to ``most``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= most:
        raise UserError(f"{name} is {value!r}, and must be a number from {least:g} to {most:g}")


def check_strings(name: str, value: Any) -> None:
    """Refuse what is no tuple of texts that differ."""
    if not isinstance(value, tuple) or not all(isinstance(one, str) for one in value):
        raise UserError(f"{name} is {value!r:.80}, and must be a list of texts")
    if len(set(value)) != len(value):
        raise UserError(f"{name} names something twice: {', '.join(value):.80}")


def check_inside(file: Any) -> None:
    """Refuse the name of a file that is not plainly inside the folder.

    Links are followed: the hub's cache is made of them.
    """
    path = PurePosixPath(str(file))
    if any(len(part.encode(errors="replace")) > 255 for part in path.parts):
        raise UserError(f"it names a file of {len(str(file))} characters, which no folder can hold")
    if path.is_absolute() or {"..", "."} & set(str(file).split("/")) or re.search(r"[\\:\0]", file):
        raise UserError(f"it names the file {file!r}, which is outside its folder")

"""Values that no real run or model has, refused before anything is made by them.

A configuration with a million layers is damage, or meant to keep a machine busy; a learning rate
that is NaN is a slip of the pen. Both would be found out late, or never.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from adalora.errors import UserError


@dataclass(frozen=True)
class Interval:
    """The numbers from ``least`` to ``most``, ends ``above`` and ``below`` left out; never NaN."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        ends = (self.least if self.above else None, self.most if self.below else None)
        return self.least <= value <= self.most and value not in ends

    def __str__(self) -> str:
        start, end = "above" if self.above else "at least", "below" if self.below else "at most"
        return f"{start} {self.least:.10g} and {end} {self.most:.10g}"


#: Of the time that a regular expression may take over all that it is matched against, seconds.
_PATTERN_SECONDS = 5.0
# What can repeat or be chosen again; without it a pattern is a list of words.
_WORDS = re.compile(r"(?:[^\\(*+?{]|\\.)*", re.DOTALL)
_MATCHER = """
import json, re, sys
patterns, texts = json.load(sys.stdin)
try:
    found = [[bool(re.fullmatch(one, text)) for text in texts] for one in patterns]
except (re.error, RecursionError, OverflowError) as error:
    found = str(error)
print(json.dumps(found))
"""

COUNT = Interval(1, 1e9)
NOT_NEGATIVE = Interval(0, 1e9)
FRACTION = Interval(0, 1, below=True)


def check_flags(arguments: object, rules: Mapping[str, Interval | Sequence[str]]) -> None:
    """Refuse a flag that is outside its interval or none of its words; None is not checked.

    Args:
        arguments: has the flags as attributes; an enumeration's member counts by its value.
        rules: flag -> what it may be.

    Raises:
        UserError: naming the first.
    """
    for name, allowed in rules.items():
        value = getattr(arguments, name)
        value = getattr(value, "value", value)
        if value is None or value in allowed:
            continue
        if isinstance(allowed, Interval):
            raise UserError(f"--{name} is {value}; it must be {allowed}.")
        *others, last = allowed
        raise UserError(f"--{name} is {value!r}; choose {', '.join(others)} or {last}.")


def check_needs(arguments: Any, needs: Mapping[str, str]) -> None:
    """Refuse a flag that was changed from its default and has no effect without another.

    Args:
        arguments: a dataclass of flags.
        needs: flag -> the flag that it needs.

    Raises:
        UserError: naming the first.
    """
    for name, needed in needs.items():
        value = getattr(arguments, name)
        if value and value != getattr(type(arguments), name) and not getattr(arguments, needed):
            raise UserError(f"--{name} {value} needs --{needed}, and does nothing without it.")


#: Far beyond any published encoder.
_MODEL_SIZES = {
    "num_hidden_layers": Interval(1, 1_000),
    "hidden_size": Interval(1, 100_000),
    "intermediate_size": Interval(1, 1_000_000),
    "num_attention_heads": Interval(1, 10_000),
    "vocab_size": Interval(1, 10_000_000),
    "max_position_embeddings": Interval(1, 10_000_000),
    "max_relative_positions": Interval(-1, 10_000_000),
    "position_buckets": Interval(-1, 1_000_000),
    "type_vocab_size": Interval(0, 10_000),
    "embedding_size": Interval(1, 100_000),
}


def check_model_sizes(config: Any, name: str) -> None:
    """Refuse a configuration whose sizes no model has.

    Raises:
        UserError: naming the first of them.
    """
    for field, allowed in _MODEL_SIZES.items():
        value = getattr(config, field, None)
        if isinstance(value, int | float) and value not in allowed:
            raise UserError(
                f"The configuration of {name!r} says {field} {value}, which must be {allowed}: it "
                "is damaged, or meant to do damage; download it again."
            )


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


def match_patterns(patterns: Sequence[str], texts: Sequence[str]) -> list[list[bool]]:
    """Whether each regular expression matches each text whole, found out in a limited time.

    A few characters can be a pattern that takes longer than the universe is old, and nothing can
    stop Python's matcher but the end of its process: patterns are matched in one of their own,
    except where they are lists of words.

    Raises:
        UserError: if one is no regular expression, or they take too long.
    """
    if all(_WORDS.fullmatch(pattern) for pattern in patterns):
        try:
            return [[re.fullmatch(p, text) is not None for text in texts] for p in patterns]
        except re.error as error:
            raise UserError(f"it is not a regular expression: {error}") from error
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHER],
            input=json.dumps([list(patterns), list(texts)]),
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATTERN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"it takes more than {_PATTERN_SECONDS:g} seconds to match; write it without "
            "repetitions inside repetitions, such as (a+)+"
        ) from error
    found: list[list[bool]] | str = json.loads(done.stdout)
    if isinstance(found, str):
        raise UserError(f"it is not a regular expression: {found}")
    return found

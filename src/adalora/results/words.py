"""Numbers, durations and the places of matrices as people read them, the same in every room.

A matrix stands in a layer and is of a kind, by its module path alone, so any architecture with
numbered layers is shown; matrices outside a numbered layer get a row of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


def number(value: float | None, digits: int = 4) -> str:
    """A measured value with ``digits`` decimals; "–" for none, "not finite" where it is not."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def compact(value: float) -> str:
    """A count or a small fraction, short enough for an axis: 1.2M, 300k, 50, 0.002, 3e-07."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as "9.3 s", "2 min 5 s" or "3 h 12 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def megabytes(size: float | None) -> str:
    """Bytes as "512 MiB" or "1.3 GiB"."""
    if size is None or not math.isfinite(size):
        return "–"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def plural(count: int, word: str) -> str:
    """ "1 run", "1,200 runs"."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def enumerate_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def span(values: Sequence[float]) -> str:
    """ "59.3k", or "59.3k to 61k" where the values differ visibly."""
    if not values:
        return "–"
    low, high = compact(min(values)), compact(max(values))
    return low if low == high else f"{low} to {high}"


# The ends of module paths, longest first where one is part of another, and the original's names.
_KINDS = (
    ("attention.output.dense", "attention.output"),
    ("intermediate.dense", "intermediate"),
    ("output.dense", "layer.output"),
    ("query_proj", "query"),
    ("key_proj", "key"),
    ("value_proj", "value"),
    ("query", "query"),
    ("key", "key"),
    ("value", "value"),
)


@dataclass(frozen=True)
class Place:
    """The row (layer) and the column (kind of matrix) of one matrix."""

    layer: str
    kind: str


def arrange(paths: Iterable[str]) -> dict[str, Place]:
    """The place of each matrix, no two the same, in the order of ``paths``.

    Args:
        paths: module paths, with or without ``.lora_E``, such as
            ``deberta.encoder.layer.3.attention.self.query_proj.lora_E``.
    """
    places: dict[str, Place] = {}
    taken: set[Place] = set()
    for path in paths:
        place = _place(path)
        if place in taken:
            # Two matrices would share a cell (stacks numbered alike): the path tells them apart.
            place = Place(path.removesuffix(".lora_E"), "rank")
        taken.add(place)
        places[path] = place
    return places


class RankGrid(NamedTuple):
    """Ranks as a table: the kinds of matrices in the order to show, and layer -> kind -> rank."""

    kinds: list[str]
    layers: dict[str, dict[str, int]]


def rank_grid(rank_pattern: Mapping[str, int]) -> RankGrid:
    """Arrange the ranks of matrices, keyed as in ``arrange``."""
    places = arrange(rank_pattern)
    grid = RankGrid(list(dict.fromkeys(place.kind for place in places.values())), {})
    for path, rank in rank_pattern.items():
        grid.layers.setdefault(places[path].layer, {})[places[path].kind] = rank
    return grid


def _place(path: str) -> Place:
    parts = path.removesuffix(".lora_E").split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbered:
        return Place(".".join(parts), "rank")
    first = numbered[0]
    tail = ".".join(parts[first + 1 :]) or "weight"
    for ending, kind in _KINDS:
        if tail == ending or tail.endswith("." + ending):
            return Place(parts[first], kind)
    return Place(parts[first], tail)

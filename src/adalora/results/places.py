"""Where a matrix stands in a model: its layer and its kind, from its module path alone.

So any architecture with numbered layers is shown; matrices outside a numbered layer get a row of
their own. The terminal's table and the pictures arrange ranks by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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

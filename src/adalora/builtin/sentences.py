"""Facts and the sentences that state them: one meaning, many wordings, and controlled changes.

A fact says who did what to which thing, where and when. Rendering chooses among synonyms and
between active and passive voice; a change replaces one part, so that the relation of two sentences
is known.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from adalora.builtin import lexicon as words

Item = TypeVar("Item")
SLOTS = ("quality", "person", "verb", "trait", "thing", "place", "time")


class Draw:
    """Choices from a seed that are the same on every Python: only ``random()`` is asked."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random.random() < probability

    def below(self, count: int) -> int:
        """A whole number from 0 to ``count`` - 1."""
        return int(self._random.random() * count)

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``."""
        return items[self.below(len(items))]

    def pick_other(self, items: Sequence[Item], than: Item) -> Item:
        """One of ``items`` that is not ``than``."""
        return self.pick([item for item in items if item != than])

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """``items`` in random order."""
        rest, result = list(items), []
        while rest:
            result.append(rest.pop(self.below(len(rest))))
        return result


@dataclass(frozen=True)
class Fact:
    """Numbers of groups in the lexicon; qualities carry their side (0 or 1), None is unsaid."""

    person: int  #: who
    verb: tuple[int, int]  #: group of verbs, and which of its two opposite sides
    thing: int  #: what
    quality: tuple[int, int] | None = None  #: of the person
    trait: tuple[int, int] | None = None  #: of the thing
    place: int | None = None  #: where
    time: int | None = None  #: when
    strange: bool = False  #: people and things of another genre (MNLI's mismatched sets)

    @property
    def persons(self) -> Sequence[tuple[str, ...]]:
        """The people that this genre knows."""
        return words.OTHER_PERSONS if self.strange else words.PERSONS

    @property
    def things(self) -> Sequence[tuple[str, ...]]:
        """The things that this genre knows."""
        return words.OTHER_OBJECTS if self.strange else words.OBJECTS

    def having(self, slot: str, value: Any) -> Fact:
        """The same fact with one part replaced."""
        change: dict[str, Any] = {slot: value}
        return replace(self, **change)

    def said(self) -> list[str]:
        """Names of the parts that are said."""
        return [slot for slot in SLOTS if getattr(self, slot) is not None]


def draw_fact(draw: Draw, *, detail: float = 0.6, strange: bool = False) -> Fact:
    """A random fact; each optional part is said with probability ``detail``."""
    fact = Fact(0, (0, 0), 0, strange=strange)
    for slot in ("person", "verb", "thing"):
        fact = add(draw, fact, slot)
    for slot in ("quality", "trait", "place", "time"):
        if draw.chance(detail):
            fact = add(draw, fact, slot)
    return fact


def add(draw: Draw, fact: Fact, slot: str) -> Fact:
    """The fact with a part said, or said again with another value or the same."""
    sided = {"verb": words.VERBS, "quality": words.ADJECTIVES, "trait": words.ADJECTIVES}
    if slot in sided:
        return fact.having(slot, (draw.below(len(sided[slot])), draw.below(2)))
    options = {"person": fact.persons, "thing": fact.things, "place": words.PLACES}
    return fact.having(slot, draw.below(len(options.get(slot, words.TIMES))))


def change(draw: Draw, fact: Fact, slot: str) -> Fact:
    """The fact with one part replaced by something else."""
    while True:
        changed = add(draw, fact, slot)
        if getattr(changed, slot) != getattr(fact, slot):
            return changed


def contradict(draw: Draw, fact: Fact) -> tuple[Fact, bool]:
    """A fact that contradicts this one, and whether it is to be stated with "not"."""
    slots = [s for s in fact.said() if s in ("verb", "quality", "trait")]
    if draw.chance(0.4):
        return fact, True
    slot = draw.pick(slots)
    group, side = getattr(fact, slot)
    return fact.having(slot, (group, 1 - side)), False


def _noun_phrase(draw: Draw, noun: str, quality: tuple[int, int] | None) -> str:
    if quality is None:
        return f"the {noun}"
    group, side = quality
    return f"the {draw.pick(words.ADJECTIVES[group][side])} {noun}"


def wording(draw: Draw, fact: Fact, *, negated: bool = False, plain: bool = False) -> str:
    """A wording of ``fact`` without capital and full stop.

    ``plain`` keeps to the active voice with the place and time at the end.
    """
    verb = draw.pick(words.VERBS[fact.verb[0]][fact.verb[1]])
    person = _noun_phrase(draw, draw.pick(fact.persons[fact.person]), fact.quality)
    thing = _noun_phrase(draw, draw.pick(fact.things[fact.thing]), fact.trait)
    if not plain and draw.chance(0.3):
        core = f"{thing} was {'not ' if negated else ''}{verb[2]} by {person}"
    elif negated:
        core = f"{person} did not {verb[0]} {thing}"
    else:
        core = f"{person} {verb[1]} {thing}"
    place = "" if fact.place is None else f" {words.PLACES[fact.place]}"
    time = "" if fact.time is None else words.TIMES[fact.time]
    if time and not plain and draw.chance(0.4):
        return f"{time} {core}{place}"
    return f"{core}{place}{' ' + time if time else ''}"


def sentence(text: str, end: str = ".") -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}{end}"

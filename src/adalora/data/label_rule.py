"""What the labels are: classes or numbers, by how every one of them is written.

A label is a number only where all are written as numbers and none would lose anything by it:
``007``, ``1_1``, ``3.10`` and ``1e3`` are words. Where two readings are left, ``--task_type``
decides.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from adalora.adapters.head import class_order
from adalora.data.separated import is_unicode
from adalora.errors import UserError

TASK_TYPES = ("classification", "regression", "multilabel")
#: Whole numbers with a decimal point are classes up to this many.
FEW = 20
_LONGEST_NAME = 200
_MOST_DISTINCT = 20_000
_MISSING_WORDS = frozenset("nan na n/a null none nil missing ? - --".split())
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
#: Kinds of values a label may have in a file: what it is called in a sentence.
_KINDS = {"text": "words", "number": "numbers", "truth": "true or false"}


@dataclass(frozen=True)
class Label:
    """One label as it is written, and the kind of value that it was in its file."""

    written: str
    kind: str = "text"


@dataclass
class Seen:
    """How often a label occurs, and where it first does."""

    count: int
    where: str


@dataclass
class Labels:
    """The labels of one file, tallied as they come."""

    place: str
    seen: dict[Label, Seen] = field(default_factory=dict)

    def add(self, value: Any, where: str) -> Label:
        """Note a label; ``where`` is its file and row.

        Raises:
            UserError: if it is missing, or no single label.
        """
        label = label_of(value, where)
        known = self.seen.get(label)
        if known is not None:
            known.count += 1
        elif len(self.seen) < _MOST_DISTINCT or _number(label) is None:
            self.seen[label] = Seen(1, where)
        else:
            self._widen(label, where)
        return label

    def _widen(self, label: Label, where: str) -> None:
        """Of more numbers than can be classes the range alone is kept."""
        value = float(label.written)
        numbers = {known: float(known.written) for known in self.seen if _number(known) is not None}
        lowest, highest = (
            min(numbers, key=numbers.__getitem__),
            max(numbers, key=numbers.__getitem__),
        )
        if numbers[lowest] <= value <= numbers[highest]:
            middle = next(known for known in numbers if known not in (lowest, highest))
            self.seen[middle].count += 1
            return
        gone = lowest if value < numbers[lowest] else highest
        self.seen[label] = Seen(self.seen.pop(gone).count + 1, where)

    @property
    def written(self) -> list[str]:
        """The different labels as they are written."""
        return list(dict.fromkeys(label.written for label in self.seen))


def label_of(value: Any, where: str) -> Label:
    """One value of a label's column.

    Raises:
        UserError: if it is missing, or no single label.
    """
    if isinstance(value, str):
        if not value.strip():
            raise UserError(f"{where}: the label is missing ({value!r:.60}).")
        if not is_unicode(value):
            raise UserError(
                f"{where}: the label {value!r:.60} is half of a surrogate pair, no text."
            )
        if len(value) > _LONGEST_NAME:
            raise UserError(
                f"{where}: the label {value[:40]!r}... has {len(value):,} characters, which is no "
                "name of a class; name the label's column with --label_column."
            )
        return Label(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise UserError(f"{where}: the label is missing ({value!r}).")
    if isinstance(value, bool):
        return Label(str(value), "truth")
    if isinstance(value, int):
        if abs(value) > 2**63:
            raise UserError(f"{where}: the label {value!s:.40} is too large.")
        return Label(str(value), "number")
    if isinstance(value, float):
        if math.isinf(value):
            raise UserError(f"{where}: the label is {value}, which is no number.")
        return Label(repr(value), "number")
    if isinstance(value, list | tuple | set):
        raise UserError(
            f"{where}: the label is a list ({value!r:.60}), which is several labels for one text "
            "(--task_type multilabel); that is not built yet. Give each text one label."
        )
    raise UserError(f"{where}: the label is {value!r:.60}, where a word or a number is expected.")


@dataclass(frozen=True)
class LabelRule:
    """How a label becomes what a model learns.

    Attributes:
        names: of the classes in order; None for regression.
        why: of classification or regression, in a few words.
        notes: what was decided that might have been decided otherwise.
        numbers: classes are whole numbers, and ``1.0`` is written for ``1`` as well.
        indices: a whole number may stand for the class at its place, as GLUE has them.
    """

    names: tuple[str, ...] | None
    why: str
    notes: tuple[str, ...] = ()
    numbers: bool = False
    indices: bool = False

    @classmethod
    def known(cls, names: Sequence[str] | None, why: str, *, indices: bool = False) -> LabelRule:
        """The rule where the classes are known already, by a task or a model."""
        numbers = names is not None and all(map(_WHOLE.fullmatch, names))
        return cls(None if names is None else tuple(names), why, numbers=numbers, indices=indices)

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return self.names is None

    def _name(self, label: Label) -> str:
        """The class that a label names; of whole numbers without their decimal point."""
        value = _number(label) if self.numbers or self.indices else None
        whole = value is not None and value.is_integer() and label.written not in (self.names or ())
        return str(int(value or 0)) if whole else label.written

    def targets(self, labels: Labels) -> dict[Label, int | float]:
        """Label -> class index, or number, of all that occur in a file.

        Raises:
            UserError: if one is no number, or none of the classes; its first row is named.
        """
        if self.names is None:
            return {label: _as_number(label, seen.where) for label, seen in labels.seen.items()}
        names = list(dict.fromkeys(self._name(label) for label in labels.seen))
        known = self.names
        if self.indices and not set(names) & set(known):
            known = tuple(map(str, range(len(known))))
        places = dict(zip(names, class_order(known, names), strict=True))
        found: dict[Label, int | float] = {}
        for label, seen in labels.seen.items():
            place = places[self._name(label)]
            if place is None:
                raise UserError(
                    f"{seen.where}: the label {label.written!r} does not occur in training; the "
                    f"labels are {listed(known, 20)}."
                )
            found[label] = place
        return found


def rule_of(
    labels: Labels,
    *,
    task_type: str | None = None,
    names: Sequence[str] | None = None,
) -> LabelRule:
    """The rule for the labels of a training file.

    Args:
        labels: all of them.
        task_type: one of ``TASK_TYPES`` that the user asked for; None to decide by the labels.
        names: of the classes, where the file's own schema has them.

    Raises:
        UserError: if they are of two kinds, collide, or may be read in two ways.
    """
    place, written = labels.place, labels.written
    if task_type == "multilabel":
        raise UserError("--task_type multilabel is not built yet; give each text one label.")
    if task_type == "regression":
        for label, seen in labels.seen.items():
            _as_number(label, seen.where)
        return LabelRule(None, "--task_type regression")
    if names is not None:
        # The places in it became names when they were read.
        return _classes(place, list(names), "the file's schema names them", ())
    _refuse_mixture(labels)
    if task_type is None:
        _refuse_strangers(labels)
    numbers = [_number(label) for label in labels.seen]
    if all(number is not None for number in numbers):
        return _of_numbers(labels, task_type)
    _refuse_collisions(labels)
    why = "--task_type classification" if task_type else "the labels are words"
    notes = []
    if task_type is None:
        _refuse_many(labels)
        if all(_parses(name) for name in written):
            odd = next(label.written for label in labels.seen if _number(label) is None)
            notes.append(
                f"{odd!r} would lose something as a number, so that the labels are words; "
                "--task_type regression takes them as numbers"
            )
        elif folded := _twins(written, str.casefold):
            notes.append(f"the classes {' and '.join(map(repr, folded))} differ in case alone")
    notes += [
        f"{name!r} is a class like the others; leave its rows out if it says that there is no label"
        for name in written
        if name.strip().casefold() in _MISSING_WORDS
    ]
    return _classes(place, sorted(written), why, notes)


def _classes(
    place: str, names: list[str], why: str, notes: Iterable[str], *, numbers: bool = False
) -> LabelRule:
    if len(names) < 2:
        raise UserError(f"{place}: every label is {names[0]!r}; at least two classes are needed.")
    return LabelRule(tuple(names), why, tuple(notes), numbers=numbers)


def _of_numbers(labels: Labels, task_type: str | None) -> LabelRule:
    values = {label: float(label.written) for label in labels.seen}
    whole = all(value.is_integer() for value in values.values())
    pointed = any(not _WHOLE.fullmatch(label.written) for label in labels.seen)
    distinct = len(set(values.values()))
    if task_type is None and pointed and not (whole and distinct <= FEW):
        kind = "whole numbers with a decimal point, and many" if whole else "numbers with decimals"
        return LabelRule(
            None, kind, ("--task_type classification takes each number as a class instead",)
        )
    why = "--task_type classification" if task_type else "the labels are whole numbers"
    notes: list[str] = []
    if not whole:
        names = sorted((label.written for label in labels.seen), key=_by_number)
        return _classes(labels.place, names, why, notes)
    if task_type is None:
        _refuse_many(labels)
    names = [str(value) for value in sorted({int(value) for value in values.values()})]
    if len(names) < len(values) and any(label.kind == "text" for label in values):
        if task_type is not None:
            return _classes(labels.place, sorted(labels.written, key=_by_number), why, ())
        one, other = _alike(values)
        raise UserError(
            f"{labels.seen[other].where}: the label {other.written!r} is the same number as "
            f"{one.written!r}; write both alike, or take all labels as words with --task_type "
            "classification, or as numbers with --task_type regression."
        )
    if pointed:
        shown = listed([label.written for label in sorted(values, key=values.__getitem__)], 5)
        notes.append(
            f"the labels {shown} are whole and few: classes, without their decimal point; "
            "--task_type regression takes them as numbers"
        )
    if any(value < 0 for value in values.values()):
        notes.append(f"{names[0]} is a class like the others")
    return _classes(labels.place, names, why, notes, numbers=True)


# ---- refusals ------------------------------------------------------------------------------------


def _refuse_mixture(labels: Labels) -> None:
    """Words, numbers, and true or false do not stand beside each other."""
    truths = [x for x in labels.seen if x.kind == "truth" or x.written.lower() in ("true", "false")]
    digits = [label for label in labels.seen if label.written in ("0", "1", "0.0", "1.0")]
    if truths and digits:
        raise UserError(
            f"{labels.seen[digits[0]].where}: the label {digits[0].written} stands beside "
            f"{truths[0].written} ({labels.seen[truths[0]].where}): the same two answers in two "
            "ways; write one of them."
        )
    kinds = {label.kind: label for label in labels.seen}
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise UserError(
            f"{labels.place}: the labels are partly {_KINDS[one]} ({first.written!r:.40}) and "
            f"partly {_KINDS[other]} ({second.written!r:.40}, {labels.seen[second].where}); write "
            "all of them alike."
        )


def _refuse_strangers(labels: Labels) -> None:
    """A few labels that are none, or no number among decimal ones."""
    numbers = [label for label in labels.seen if _number(label) is not None]
    others = [label for label in labels.seen if not _parses(label.written)]
    decimal = any(not _WHOLE.fullmatch(label.written) for label in numbers)
    commas = [x for x in labels.seen if re.fullmatch(r"-?\d+,\d+", x.written)]
    if commas and all(re.fullmatch(r"-?\d+(,\d+)?", label.written) for label in labels.seen):
        raise UserError(
            f"{labels.seen[commas[0]].where}: the label {commas[0].written!r} may be a number with "
            "a decimal comma; write a point, or take the labels as words with --task_type "
            "classification."
        )
    strange = [x for x in others if decimal or x.written.strip().casefold() in _MISSING_WORDS]
    strange += [x for x in labels.seen if _parses(x.written) and not _is_finite(x.written)]
    if numbers and strange and (not decimal or len(numbers) > len(others)):
        bad = strange[0]
        raise UserError(
            f"{labels.seen[bad].where}: the label is {bad.written!r} among numbers; leave the row "
            "out or give it a number, or take all labels as words with --task_type classification."
        )


def _refuse_collisions(labels: Labels) -> None:
    """Labels that look the same: spaces around them, or letters composed in another way."""

    def seen_alike(name: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", name).split())

    twins = _twins(labels.written, seen_alike)
    if twins:
        second = labels.seen[next(x for x in labels.seen if x.written == twins[1])]
        raise UserError(
            f"{second.where}: the label {twins[1]!r} looks like {twins[0]!r}, and would be another "
            "class; write both alike."
        )


def _refuse_many(labels: Labels) -> None:
    """Nearly every row with a label of its own is not a set of classes."""
    rows, distinct = sum(seen.count for seen in labels.seen.values()), len(labels.seen)
    if distinct > FEW and distinct > rows / 2:
        raise UserError(
            f"{labels.place}: {distinct:,} different labels in {rows:,} rows, such as "
            f"{listed(labels.written, 3)}; if they are classes, say so with --task_type "
            "classification; if numbers, --task_type regression; or name the label's column with "
            "--label_column."
        )


def _alike(values: dict[Label, float]) -> tuple[Label, Label]:
    """The first two labels that are one number."""
    known: dict[float, Label] = {}
    return next(
        (known[value], label)
        for label, value in values.items()
        if known.setdefault(value, label) is not label
    )


def _twins(names: Sequence[str], look: Any) -> tuple[str, str] | None:
    looks: dict[str, str] = {}
    for name in names:
        known = looks.setdefault(look(name), name)
        if known != name:
            return known, name
    return None


# ---- numbers -------------------------------------------------------------------------------------


def _number(label: Label) -> float | None:
    """The number that a label is written as; None if it is a word or would lose something."""
    if label.kind == "truth":
        return None
    if _WHOLE.fullmatch(label.written):
        return None if label.written == "-0" else float(label.written)
    try:
        value = float(label.written)
    except ValueError:
        return None
    return value if math.isfinite(value) and repr(value) == label.written else None


def _by_number(text: str) -> tuple[float, str]:
    return float(text), text


def _parses(text: str) -> bool:
    if "_" in text:  # which Python passes over
        return False
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_finite(text: str) -> bool:
    return math.isfinite(float(text))


def _as_number(label: Label, where: str) -> float:
    if label.kind == "truth" or not _parses(label.written) or not _is_finite(label.written):
        raise UserError(f"{where}: the label {label.written!r} is no number.")
    return float(label.written)


def listed(names: Sequence[str], most: int) -> str:
    """The first ``most`` of ``names``, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"

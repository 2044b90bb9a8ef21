"""What lies beside a run's record: ``history.json`` and the answers on its evaluation sets.

The history has what was logged, how the budget was spent and what each triplet was worth.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora.errors import UserError

#: A step and what was measured at it.
Point = tuple[int, float]
# More classes than these are numbers (STS-B), or make no table that can be read.
_MOST_CLASSES = 12


@dataclass(frozen=True)
class Allocation:
    """The ranks after one pruning."""

    step: int  #: optimizer step, from 0
    budget: int  #: triplets allowed in the whole model
    threshold: float | None  #: score at or below which triplets were pruned; None where none was
    ranks: Mapping[str, int]  #: triplets kept per matrix


@dataclass(frozen=True)
class History:
    """What a run logged; each part may be empty."""

    log_history: Sequence[Mapping[str, Any]] = ()  #: the Trainer's records
    allocations: Sequence[Allocation] = ()  #: in the order of their steps
    #: scores of each matrix's triplets at the end, in descending order
    importance: Mapping[str, Sequence[float]] | None = None

    def series(self, key: str) -> list[Point]:
        """The finite values logged as ``key``, one for each step.

        Of several at one step the first counts: after training, a task's other evaluation sets are
        logged under the same names.
        """
        points: dict[int, float] = {}
        for entry in self.log_history:
            value = entry.get(key)
            if isinstance(value, int | float) and math.isfinite(value) and "step" in entry:
                points.setdefault(int(entry["step"]), float(value))
        return sorted(points.items())


@dataclass(frozen=True)
class Confusion:
    """How often each true class was predicted as each: ``counts[true][predicted]``."""

    name: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Traces:
    """What a run left beside its record."""

    history: History = History()  #: empty where none was kept
    #: one per evaluation set whose predictions were kept and are classes
    confusions: tuple[Confusion, ...] = ()
    notes: tuple[str, ...] = ()  #: sentences on what could not be read


def read_traces(folder: Path | None) -> Traces:
    """What lies in a run's folder, nothing where there is none; a damaged part becomes a note."""
    if folder is None:
        return Traces()
    notes: list[str] = []
    history = History()
    try:
        history = read_history(folder / "history.json")
    except UserError as error:
        notes.append(str(error))
    confusions = []
    for path in sorted(folder.glob("eval_predictions_*.tsv")):
        try:
            confusion = _confusion(path)
        except UserError as error:
            notes.append(f"{path.name} could not be read: {error}")
            continue
        if confusion is not None:
            confusions.append(confusion)
    return Traces(history, tuple(confusions), tuple(notes))


def read_predictions(path: Path) -> tuple[list[str], list[str]]:
    """Labels and predictions as written, in the order of the examples.

    Raises:
        UserError: if the file is missing or is none of predictions.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there.")
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    if not rows or rows[0] != ["index", "label", "prediction"] or len(rows) < 2:
        raise UserError(f"{path} does not begin with 'index, label, prediction' or has no rows.")
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise UserError(f"{path}, line {number} has {len(row)} columns; expected 3.")
    return [row[1] for row in rows[1:]], [row[2] for row in rows[1:]]


def _confusion(path: Path) -> Confusion | None:
    """The counts in a file of predictions; None where they are numbers or of very many classes."""
    pairs = Counter(zip(*read_predictions(path), strict=True))
    classes = sorted({name for pair in pairs for name in pair})
    if not 2 <= len(classes) <= _MOST_CLASSES or all(_is_fraction(name) for name in classes):
        return None
    return Confusion(
        name=path.stem.removeprefix("eval_predictions_"),
        classes=tuple(classes),
        counts=tuple(tuple(pairs[true, guess] for guess in classes) for true in classes),
    )


def _is_fraction(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "." in word


def read_history(path: Path) -> History:
    """The history in ``path``, refused if damaged; empty where there is none (older runs)."""
    if not path.is_file():
        return History()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return History(
            log_history=[dict(entry) for entry in content.get("log_history") or ()],
            allocations=[
                Allocation(
                    step=int(entry["step"]),
                    budget=int(entry["budget"]),
                    threshold=None if entry["threshold"] is None else float(entry["threshold"]),
                    ranks={str(name): int(rank) for name, rank in entry["ranks"].items()},
                )
                for entry in content.get("allocations") or ()
            ],
            importance={
                # A score that is not finite is null in the file.
                str(name): [float(score) for score in scores if score is not None]
                for name, scores in (content.get("importance") or {}).items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not the history of a run ({type(error).__name__}: {error}); it is written "
            "by run_glue.py at the end of training."
        ) from error

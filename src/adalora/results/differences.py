"""How far the rows of a table are from one of them, with intervals, for the models that runs left.

It reads the predictions that runs leave with their record, ``eval_predictions_<name>.tsv``. Where
they are gone the scores in the records are compared, and the interval is for these very examples:
it has the chance of the seeds alone, and no difference is marked by it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from adalora.errors import UserError
from adalora.glue.predictions import result_name
from adalora.glue.tasks import resolve_task
from adalora.results.bootstrap import LEAST_SEEDS, bootstrap_differences, half_width
from adalora.results.columns import CONVENTIONS, Column, task_score
from adalora.results.history import read_predictions
from adalora.results.rows import Row
from adalora.results.scores import table_columns
from adalora.results.sources import Run

Array = np.ndarray[Any, Any]
_Reader = Callable[[Path], tuple[list[str], list[str]]]


@dataclass(frozen=True)
class Difference:
    """In percentage points: mean over ``seeds`` pairs of runs, and its interval, None below three.

    ``examples`` says whether the interval has the chance of the examples as well as of the seeds.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    examples: bool

    @property
    def marked(self) -> bool:
        """Whether the interval leaves out 0 and may be leaned on."""
        if self.low is None or self.high is None:
            return False
        return self.examples and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class _Part:
    """Differences by seed in points, and replicates over draws of examples, None without them."""

    by_seed: Mapping[int, float]
    replicates: Array | None


class _NoPredictionsError(UserError):
    """The predictions of a run are gone; its scores are not."""


@dataclass(frozen=True)
class Differences:
    """Every row against ``baseline``."""

    rows: Sequence[Row]
    baseline: int  #: index of its row
    columns: Mapping[str, tuple[Column, ...]]
    #: (index of the row, title of the column) -> difference
    cells: Mapping[tuple[int, str], Difference]
    #: (index of the row, convention) -> difference of the average over ``averaged``
    averages: Mapping[tuple[int, str], Difference]
    averaged: tuple[str, ...]  #: the tasks for which every row has a difference
    missing: tuple[str, ...]  #: why a cell is empty, one sentence each


def find_row(rows: Sequence[Row], wanted: str) -> int:
    """Index of the one row that ``wanted`` names: its label, or the method if that has one row."""
    name = wanted.replace("->", "→").casefold()
    labels = [row.label.casefold() for row in rows]
    found = [index for index, label in enumerate(labels) if label == name]
    if not found:
        found = [i for i, label in enumerate(labels) if label.startswith((f"{name} ", f"{name},"))]
    shown = ", ".join(repr(row.label) for row in rows)
    if not found:
        raise UserError(f"--against {wanted!r} names no row of the table; its rows are {shown}.")
    if len(found) > 1:
        several = ", ".join(repr(rows[index].label) for index in found)
        raise UserError(f"--against {wanted!r} names several rows: {several}; give one in full.")
    return found[0]


def differences(
    rows: Sequence[Row], baseline: int, *, level: float, resamples: int, seed: int
) -> Differences:
    """Compare every row of one base model with row ``baseline``.

    ``level`` is that of the intervals, such as 0.95. ``resamples`` draws of examples are made from
    ``seed``; the same draws serve every row.
    """
    columns = table_columns(rows)
    found: dict[tuple[int, str], _Part] = {}
    missing: list[str] = []
    read = cache(read_predictions)
    for index, row in enumerate(rows):
        for task, of_task in columns.items() if index != baseline else ():
            for column in of_task:
                try:
                    seeds, *pairs = _pairs(read, row, rows[baseline], column)
                    by_seed, replicates = bootstrap_differences(
                        column.bootstrap,
                        *pairs,
                        resamples=resamples,
                        random=np.random.default_rng(
                            [seed, zlib.crc32(f"{task}/{column.split}".encode())]
                        ),
                    )
                    part = _Part(dict(zip(seeds, 100 * by_seed, strict=True)), 100 * replicates)
                except _NoPredictionsError:
                    ours, theirs = (one.figures(column, "saved") for one in (row, rows[baseline]))
                    common = ours.keys() & theirs.keys()
                    part = _Part({seed: ours[seed] - theirs[seed] for seed in common}, None)
                except UserError as error:
                    missing.append(f"{row.label}, {column.title}: {error}")
                    continue
                if part.by_seed:
                    found[index, column.title] = part
                else:
                    missing.append(f"{row.label}, {column.title}: no score to compare.")
    others = [index for index in range(len(rows)) if index != baseline]
    averaged = tuple(
        task
        for task, of_task in columns.items()
        if others and all((i, column.title) in found for i in others for column in of_task)
    )
    averages = {}
    for index in others if averaged else ():
        for convention in CONVENTIONS:
            parts = [
                _task_part([found[index, c.title] for c in columns[task]], convention)
                for task in averaged
            ]
            averages[index, convention] = _difference(parts, level)
    return Differences(
        rows=rows,
        baseline=baseline,
        columns=columns,
        cells={key: _difference([one], level) for key, one in found.items()},
        averages=averages,
        averaged=averaged,
        missing=tuple(missing),
    )


def _task_part(columns: Sequence[_Part], convention: str) -> _Part:
    """The difference of a task's one number, from those of its columns."""
    seeds = set.intersection(*(set(one.by_seed) for one in columns))
    by_seed = {s: task_score([one.by_seed[s] for one in columns], convention) for s in seeds}
    replicates: list[Any] = [one.replicates for one in columns if one.replicates is not None]
    known = len(replicates) == len(columns)
    pooled: Any = task_score(replicates, convention) if known else None
    return _Part(by_seed, pooled)


def _difference(parts: Sequence[_Part], level: float) -> Difference:
    """The mean of the parts; those that share their seeds are added seed by seed."""
    value = float(np.mean([np.mean(list(one.by_seed.values())) for one in parts]))
    least = min(len(one.by_seed) for one in parts)
    replicates = [one.replicates for one in parts if one.replicates is not None]
    examples = len(replicates) == len(parts)
    if least < LEAST_SEEDS:
        return Difference(value, None, None, least, examples)
    groups: dict[tuple[int, ...], Array] = {}
    for one in parts:
        seeds = tuple(sorted(one.by_seed))
        share = np.array([one.by_seed[seed] for seed in seeds]) / len(parts)
        groups[seeds] = groups[seeds] + share if seeds in groups else share
    variance = float(np.mean(replicates, axis=0).var(ddof=1)) if examples else 0.0
    half = float(half_width(list(groups.values()), variance, level))
    return Difference(value, value - half, value + half, least, examples)


def _pairs(read: _Reader, row: Row, baseline: Row, column: Column) -> tuple[Any, ...]:
    """The seeds that both rows have, labels [n], and predictions [seeds, n] of both."""

    def file(run: Run) -> tuple[list[str], list[str]]:
        name = f"eval_predictions_{result_name(run.record.task, column.split)}.tsv"
        if run.folder is None or not (run.folder / name).is_file():
            raise _NoPredictionsError(f"{name} of a run (seed {run.record.seed}) is not there.")
        return read(run.folder / name)

    ours = {run.record.seed: run for run in row.runs.get(column.task, ())}
    theirs = {run.record.seed: run for run in baseline.runs.get(column.task, ())}
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        raise UserError(f"no seed in common with {baseline.label}.")
    files = [[file(runs[seed]) for seed in seeds] for runs in (ours, theirs)]
    labels = files[0][0][0]
    if any(one[0] != labels for side in files for one in side):
        raise UserError("the runs were evaluated on different examples.")
    classes = _classes(column, labels, files)
    ours_, theirs_ = ([_encode(one[1], classes) for one in side] for side in files)
    return seeds, _encode(labels, classes), np.stack(ours_), np.stack(theirs_)


def _classes(
    column: Column, labels: Sequence[str], files: Sequence[Sequence[tuple[list[str], list[str]]]]
) -> tuple[str, ...] | None:
    """Class names in the order of their indices, so that F1 is of the right one; None: numbers."""
    try:
        return resolve_task(column.task)[0].labels
    except UserError:  # the user's own data
        if column.bootstrap == "pearson":
            return None
    return tuple(sorted({*labels, *(name for side in files for one in side for name in one[1])}))


def _encode(words: Sequence[str], classes: tuple[str, ...] | None) -> Array:
    try:
        if classes is None:
            return np.array([float(word) for word in words])
        index = {name: number for number, name in enumerate(classes)}
        return np.array([index[word] for word in words])
    except (KeyError, ValueError) as error:
        expected = "a number" if classes is None else f"one of {', '.join(classes)}"
        raise UserError(f"a prediction or label is not {expected} ({error}).") from error

"""The scores of one base model at one epoch: rows by columns, averages, and which runs are marked.

Figures are percent. The last epoch and the best one are two tables and never meet in one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adalora.results.columns import CONVENTIONS, Column, columns_of, task_order, task_score
from adalora.results.rows import Row, Spread
from adalora.results.sources import Failure

__all__ = ["EPOCHS", "FAILED", "GUARDS", "ScoreTable", "score_table", "table_columns"]

EPOCHS = ("last", "best")
FAILED = "failed"
#: Kind of a record's warning -> what it says of a run.
GUARDS = {
    "one_class": "answers one class to everything",
    "loss_not_finite": "the loss was not finite",
    "ranks_unchanged": "the ranks never changed",
    "delta_zero": "the adapter changes nothing",
    "no_better_than_majority": "no better than always answering the most frequent class",
    "steps_skipped": "steps were left out of the importance, their gradients not being finite",
    FAILED: "a run of this cell failed, so that it has fewer seeds",
}


@dataclass(frozen=True)
class ScoreTable:
    """What one table says.

    Attributes:
        base_model: of all its rows.
        epoch: ``last`` or ``best``.
        columns: by task, in the order to show.
        rows: in the order to show.
        figures: (index of the row, title of the column) -> mean and deviation over seeds.
        averages: (index of the row, convention) -> likewise; no deviation where the tasks of a row
            do not have the same seeds.
        averaged: the tasks that every row has, over which all averages are.
        marks: (index of the row, task) -> {guard: seeds it was raised for}.
    """

    base_model: str
    epoch: str
    columns: Mapping[str, tuple[Column, ...]]
    rows: Sequence[Row]
    figures: Mapping[tuple[int, str], Spread]
    averages: Mapping[tuple[int, str], Spread]
    averaged: tuple[str, ...]
    marks: Mapping[tuple[int, str], Mapping[str, tuple[int, ...]]]

    @property
    def seeds(self) -> set[int]:
        """How many seeds its figures are of."""
        return {figure.n for figure in self.figures.values()}


def table_columns(rows: Sequence[Row]) -> dict[str, tuple[Column, ...]]:
    """The columns of every task that any row has, in the paper's order."""
    found: dict[str, tuple[Column, ...]] = {}
    for row in rows:
        for task, runs in row.runs.items():
            found.setdefault(task, columns_of(task, runs[0].record.scores))
    return {task: found[task] for task in sorted(found, key=task_order)}


def score_table(rows: Sequence[Row], epoch: str, failures: Sequence[Failure] = ()) -> ScoreTable:
    """The table of ``rows``, which are of one base model, at ``epoch``."""
    columns = table_columns(rows)
    values = {
        (index, column.title): row.figures(column, epoch)
        for index, row in enumerate(rows)
        for of_task in columns.values()
        for column in of_task
    }
    figures = {key: Spread.of(list(found.values())) for key, found in values.items() if found}
    averaged = tuple(
        task
        for task, of_task in columns.items()
        if all((row, column.title) in figures for row in range(len(rows)) for column in of_task)
    )
    averages = {}
    for index in range(len(rows)):
        by_column = {title: found for (row, title), found in values.items() if row == index}
        for convention in CONVENTIONS if averaged else ():
            average = _average([columns[task] for task in averaged], by_column, convention)
            averages[index, convention] = average
    marks = {
        (index, task): found
        for index, row in enumerate(rows)
        for task in row.runs
        if (found := _marks(row, task, failures))
    }
    return ScoreTable(
        base_model=rows[0].base_model,
        epoch=epoch,
        columns=columns,
        rows=rows,
        figures=figures,
        averages=averages,
        averaged=averaged,
        marks=marks,
    )


def _average(
    tasks: Sequence[tuple[Column, ...]], values: Mapping[str, Mapping[int, float]], convention: str
) -> Spread:
    """Over tasks: seed by seed where all tasks have the same seeds, else of the means alone."""
    seeds = [set(values[column.title]) for columns in tasks for column in columns]
    if all(some == seeds[0] for some in seeds):
        return Spread.of(
            [
                statistics.fmean(
                    task_score([values[column.title][seed] for column in columns], convention)
                    for columns in tasks
                )
                for seed in sorted(seeds[0])
            ]
        )
    means = [
        task_score([statistics.fmean(values[c.title].values()) for c in columns], convention)
        for columns in tasks
    ]
    return Spread(statistics.fmean(means), None, min(map(len, seeds)))


def _marks(row: Row, task: str, failures: Sequence[Failure]) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for run in row.runs[task]:
        for warning in run.record.warnings:
            if warning["kind"] in GUARDS and run.record.seed not in found.get(warning["kind"], ()):
                found.setdefault(warning["kind"], []).append(run.record.seed)
    cells = [_without_seed(run.cell) for run in row.runs[task] if run.cell]
    for failure in failures:
        if _without_seed(failure.cell) in cells:
            found.setdefault(FAILED, []).append(int(failure.cell.get("seed", -1)))
    return {kind: tuple(seeds) for kind, seeds in found.items()}


def _without_seed(cell: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in cell.items() if name != "seed"}

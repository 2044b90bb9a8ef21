"""The scores of finished runs: rows by columns, averages, marks, and what a picture shows of them.

``score_table`` is what every table shows; ``summarise`` makes one of a whole sweep, for the report.
Figures are percent. The last epoch and the best one are two tables and never meet in one.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adalora.results.columns import CONVENTIONS, Column, columns_of, task_order, task_score
from adalora.results.rows import Row, Spread, rows_of
from adalora.results.sources import Sweep

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
    """What one table says."""

    base_model: str  #: of all its rows
    epoch: str  #: ``last`` or ``best``
    columns: Mapping[str, tuple[Column, ...]]  #: by task, in the order to show
    rows: Sequence[Row]  #: in the order to show
    #: (index of the row, title of the column) -> mean and deviation over seeds
    figures: Mapping[tuple[int, str], Spread]
    #: (index of the row, convention) -> likewise; no deviation where the tasks of a row do not have
    #: the same seeds
    averages: Mapping[tuple[int, str], Spread]
    averaged: tuple[str, ...]  #: the tasks that every row has, over which all averages are
    #: (index of the row, task) -> {guard: seeds it was raised for}
    marks: Mapping[tuple[int, str], Mapping[str, tuple[int, ...]]]
    #: (index of the row, title of the column) whose mean no other row exceeds
    best: frozenset[tuple[int, str]]
    #: title of the column -> the range of the methods that work, as ``focus_of`` has it
    focus: Mapping[str, tuple[float, float]]

    @property
    def seeds(self) -> set[int]:
        """How many seeds its figures are of."""
        return {figure.n for figure in self.figures.values()}

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Of every task."""
        return tuple(column for of_task in self.columns.values() for column in of_task)

    @property
    def outside_the_head(self) -> bool:
        """Whether parameters are counted without the head: where every row trains others too."""
        return all(row.parameters("adapter_initial") for row in self.rows if row.all_runs)

    def final(self, row: Row) -> float:
        """Trained parameters that ``row`` keeps, as the paper counts them; means over its runs."""
        return row.parameters("adapter_kept") + self._head(row)

    def initial(self, row: Row) -> float:
        """Trained parameters that ``row`` began with."""
        return row.parameters("adapter_initial") + self._head(row)

    def _head(self, row: Row) -> float:
        return 0.0 if self.outside_the_head else row.parameters("head")

    def outside(self, row: int, column: Column) -> bool:
        """Whether the row's mean lies outside the range of the methods that work."""
        low, high = self.focus[column.title]
        return not low <= self.figures[row, column.title].mean <= high


def table_columns(rows: Sequence[Row]) -> dict[str, tuple[Column, ...]]:
    """The columns of every task that any row has, in the paper's order."""
    found: dict[str, tuple[Column, ...]] = {}
    for row in rows:
        for task, runs in row.runs.items():
            record = runs[0].record
            found.setdefault(task, columns_of(task, record.scores, own_data=record.task is None))
    return {task: found[task] for task in sorted(found, key=task_order)}


def summarise(sweep: Sweep, epoch: str = "last") -> tuple[ScoreTable, list[str]]:
    """The table of all runs of a sweep, most trained parameters at the end first, and notes.

    Rows of several base models are in one table, with the model in their label.
    """
    rows, notes = rows_of(sweep.runs, sweep.failures)
    bases = {row.base_model for row in rows if row.base_model}
    if len(bases) > 1:
        rows = [
            replace(row, label=f"{row.label}, {row.base_model}") if row.base_model else row
            for row in rows
        ]
    rows.sort(key=lambda row: (-row.parameters("adapter_kept") - row.parameters("head"), row.label))
    return score_table(rows, epoch, base_model=", ".join(sorted(bases))), notes


def focus_of(means: Sequence[float], majority: float | None) -> tuple[float, float] | None:
    """The range to draw a column's means in, so that no outlier presses the others together.

    It holds the means above the majority baseline that are no further below the median of those
    than five standard deviations, estimated from the median absolute deviation (two points at
    least), and a tenth of itself around, one point at least. A method that is far better than the
    others is never left out. All means count where fewer than two are above the baseline; None
    without any.
    """
    above = [mean for mean in means if majority is None or mean > majority]
    working = above if len(above) > 1 else list(means)
    if not working:
        return None
    middle = statistics.median(working)
    # 1.4826 makes of it the deviation of a normal distribution (Iglewicz and Hoaglin 1993).
    spread = 1.4826 * statistics.median(abs(mean - middle) for mean in working)
    working = [mean for mean in working if mean >= middle - max(5 * spread, 2.0)]
    low, high = min(working), max(working)
    margin = max(0.1 * (high - low), 1.0)
    return low - margin, high + margin


def score_table(rows: Sequence[Row], epoch: str, *, base_model: str = "") -> ScoreTable:
    """The table of ``rows`` at ``epoch``; ``base_model`` is the first row's where not given."""
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
        for task in columns
        if (found := _marks(row, task))
    }
    means: dict[str, dict[int, float]] = {}
    for (index, title), figure in figures.items():
        means.setdefault(title, {})[index] = figure.mean
    majority = {column.title: column.majority for of in columns.values() for column in of}
    focus = {title: focus_of([*of.values()], majority[title]) for title, of in means.items()}
    return ScoreTable(
        base_model=base_model or rows[0].base_model,
        epoch=epoch,
        columns=columns,
        rows=rows,
        figures=figures,
        averages=averages,
        averaged=averaged,
        marks=marks,
        best=frozenset(
            (index, title)
            for title, of in means.items()
            for index, mean in of.items()
            if mean == max(of.values())
        ),
        focus={title: one for title, one in focus.items() if one is not None},
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


def _marks(row: Row, task: str) -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for run in row.runs.get(task, ()):
        for warning in run.record.warnings:
            if warning["kind"] in GUARDS and run.record.seed not in found.get(warning["kind"], ()):
                found.setdefault(warning["kind"], []).append(run.record.seed)
    for failure in row.failed(task):
        found.setdefault(FAILED, []).append(int(failure.cell.get("seed", -1)))
    return {kind: tuple(seeds) for kind, seeds in found.items()}

"""A sweep's runs gathered by method: mean and standard deviation over seeds, task by task.

A method's row is everything that the sweep varied but task and seed. Scores are those of the last
epoch; the best epoch is a matter of its own, told in each run's section.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adalora.report.sources import FailedRun, RunSource, SweepSource
from adalora.results.words import compact

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Summary",
    "row_label",
    "span",
    "summarise",
    "task_of",
]


@dataclass(frozen=True)
class Column:
    """One evaluation set of one task, and the metric to look at."""

    task: str
    split: str
    metric: str
    majority: float

    @property
    def heading(self) -> str:
        """The task, and of its evaluation set what tells it from the others (mnli's two)."""
        return f"{self.task} {self.split.partition('_')[2]}".strip()


@dataclass(frozen=True)
class Cell:
    """The finite scores of one method in one column, over its seeds.

    Attributes:
        values: one per run.
        flagged: runs among them that carry a warning.
        failed: runs without a score.
        best: whether no method has a higher mean in this column.
    """

    values: tuple[float, ...] = ()
    flagged: int = 0
    failed: int = 0
    best: bool = False

    @property
    def mean(self) -> float | None:
        """Over the runs; None without any."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation; None with fewer than two runs."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One method, in one setting: its runs and its cells in the order of the columns."""

    label: str
    runs: tuple[RunSource, ...]
    cells: list[Cell]

    @property
    def trained(self) -> float:
        """Mean number of trained parameters (heads differ a little between tasks); 0 if unknown."""
        return statistics.fmean([run.record.parameters["trained"] for run in self.runs] or [0])


@dataclass(frozen=True)
class Summary:
    """The table: rows from the most to the fewest trained parameters."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> int | None:
        """How many runs each cell with a score has, if it is the same for all."""
        counts = {len(cell.values) for row in self.rows for cell in row.cells if cell.values}
        return counts.pop() if len(counts) == 1 else None


def summarise(sweep: SweepSource) -> Summary:
    """Gather the runs of a sweep."""
    varied = _varied(sweep)
    columns = _columns(sweep.runs)
    runs: dict[str, list[RunSource]] = {}
    failed: dict[str, list[FailedRun]] = {}
    for run in sweep.runs:
        runs.setdefault(row_label(run, varied), []).append(run)
    for failure in sweep.failed:
        failed.setdefault(row_label(failure, varied), []).append(failure)
    rows = [
        Row(
            label,
            tuple(runs.get(label, ())),
            [_cell(column, runs.get(label, ()), failed.get(label, ())) for column in columns],
        )
        for label in dict.fromkeys([*runs, *failed])
    ]
    rows.sort(key=lambda row: (-row.trained, row.label))
    for index in range(len(columns)):
        means = [mean for row in rows if (mean := row.cells[index].mean) is not None]
        for row in rows:
            cell = row.cells[index]
            row.cells[index] = replace(cell, best=cell.mean is not None and cell.mean == max(means))
    return Summary(columns, tuple(rows))


def _main_score(run: RunSource, split: str) -> float | None:
    """The main metric of the last epoch, if the run has a finite one for ``split``."""
    score = run.record.scores.get(split)
    value = None if score is None else score["last"].get(score["main"])
    return value if value is not None and math.isfinite(value) else None


def row_label(run: RunSource | FailedRun, varied: Sequence[str]) -> str:
    """The method's name, and what else of its cell varies over the sweep."""
    default = run.record.method if isinstance(run, RunSource) else "unnamed method"
    parts = [str(run.cell.get("method") or default)]
    for name in varied:
        value = run.cell.get(name)
        if value is not None:
            parts.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(parts)


def _varied(sweep: SweepSource) -> list[str]:
    cells = [*(run.cell for run in sweep.runs), *(run.cell for run in sweep.failed)]
    names = dict.fromkeys(name for cell in cells for name in cell)
    return [
        name
        for name in names
        if name not in ("task", "method", "seed")
        and len({str(cell.get(name)) for cell in cells}) > 1
    ]


def task_of(run: RunSource | FailedRun) -> str:
    """The task as the sweep or the run names it."""
    named = run.record.task if isinstance(run, RunSource) else None
    return str(run.cell.get("task") or named or "own data")


def _columns(runs: Sequence[RunSource]) -> tuple[Column, ...]:
    columns: dict[tuple[str, str], Column] = {}
    for run in runs:
        for split, score in run.record.scores.items():
            column = Column(task_of(run), split, score["main"], score["majority"])
            columns.setdefault((column.task, split), column)
    return tuple(columns[key] for key in sorted(columns))


def _cell(column: Column, runs: Sequence[RunSource], failed: Sequence[FailedRun]) -> Cell:
    here = [run for run in runs if task_of(run) == column.task]
    values = [_main_score(run, column.split) for run in here]
    finite = tuple(value for value in values if value is not None)
    return Cell(
        finite,
        flagged=sum(bool(run.record.warnings) for run in here),
        failed=len(here) - len(finite) + sum(task_of(one) == column.task for one in failed),
    )


def span(values: Sequence[float]) -> str:
    """ "59.3k", or "59.3k to 61k" where the values differ visibly."""
    if not values:
        return "–"
    low, high = compact(min(values)), compact(max(values))
    return low if low == high else f"{low} to {high}"

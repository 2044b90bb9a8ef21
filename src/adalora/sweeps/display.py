"""What a sweep shows: its plan as a table, and its runs while they are made."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from adalora.results.sources import Result
from adalora.sweeps.cells import Cell
from adalora.sweeps.estimate import Estimate, Setting, setting_of
from adalora.sweeps.runner import main_score

__all__ = ["Display", "duration", "plan_table"]


def duration(seconds: float) -> str:
    """In the two units that matter: "3 h 20 min", "4 min 5 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plan_table(cells: Sequence[Cell], estimates: Mapping[Setting, Estimate]) -> Table:
    """A row for each task, method and budget, with what its runs will take where that is known."""
    rows: dict[Setting, int] = {}
    for cell in cells:
        rows[setting_of(cell)] = rows.get(setting_of(cell), 0) + 1
    budgets = any(setting[2] is not None for setting in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("task", "method", *(("budget",) if budgets else ())):
        table.add_column(heading)
    table.add_column("runs", justify="right")
    for heading in ("steps", "a step", "a run") if estimates else ():
        table.add_column(heading, justify="right")
    for setting, runs in rows.items():
        task, method, budget = setting
        cost: tuple[str, ...] = ()
        if (one := estimates.get(setting)) is not None:
            known = one.problem is None
            step = f"{one.step_seconds:.3g} s"
            cost = (str(one.steps), step, duration(one.seconds)) if known else ("?", "?", "?")
        names = (task, method, *((budget or "-",) if budgets else ()))
        table.add_row(*map(escape, names), str(runs), *cost)
    return table


class Display:
    """Lines for runs that have ended, and below them, on a terminal, those that are being made.

    Args:
        console: where to.
        total: runs of the sweep.
        done: runs that had ended before.
        slots: runs at a time, for the time that is left.
    """

    def __init__(self, console: Console, *, total: int, done: int, slots: int) -> None:
        self.console = console
        self._total, self._ended, self._slots = total, done, slots
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("all runs", total=total, completed=done, note="")
        self._tasks: dict[str, tuple[TaskID, float]] = {}
        self._took: dict[Setting, list[float]] = {}
        self._waiting: list[Setting] = []

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def expect(self, cells: Sequence[Cell]) -> None:
        """The runs that are still to be made."""
        self._waiting = [setting_of(cell) for cell in cells]

    def started(self, cell: Cell) -> None:
        """A run has begun."""
        task = self._progress.add_task(escape(cell.id), total=None, note="")
        self._tasks[cell.id] = task, time.monotonic()

    def ended(self, cell: Cell, result: Result) -> None:
        """A run has ended, one way or the other."""
        self._ended += 1
        took = ""
        if cell.id in self._tasks:
            task, started = self._tasks.pop(cell.id)
            self._progress.remove_task(task)
            seconds = time.monotonic() - started
            took = f"  {duration(seconds)}"
            self._took.setdefault(setting_of(cell), []).append(seconds)
        if setting_of(cell) in self._waiting:
            self._waiting.remove(setting_of(cell))
        self._progress.update(self._all, completed=self._ended, note=self._left())
        head = f"[{self._ended}/{self._total}]"
        if result.record is None:
            self._line(f"{head} {cell.id}  failed{took}: {result.error}", style="red")
            return
        score = main_score(result.record)
        reached = "" if score is None else f"  {score[0]} {score[1]:.4f}"
        found = ", ".join(warning["kind"] for warning in result.record.warnings)
        warned = f"  warnings: {found}" if found else ""
        self._line(f"{head} {cell.id}{reached}{took}{warned}", style="yellow" if found else None)

    def _line(self, text: str, style: str | None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        """About how long the rest will take, judged by the runs that were made."""
        known = [seconds for took in self._took.values() for seconds in took]
        if not known or not self._waiting:
            return ""
        each = [statistics.mean(self._took.get(setting, known)) for setting in self._waiting]
        return f"about {duration(sum(each) / self._slots)} left"

"""What a sweep shows: its plan as a table, and its runs while they are made."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
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
from adalora.results.words import duration
from adalora.sweeps.cells import Cell, word
from adalora.sweeps.runner import Estimate, main_score


def plan_table(cells: Sequence[Cell], estimates: Mapping[str, Estimate]) -> Table:
    """A row for each group of cells, with what its runs will take where that is known.

    ``estimates`` are by ``Cell.group``; empty where nothing was measured.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    named = [name for name in cells[0].axes if name != "seed"]
    if all(cell.axes["budget"] is None for cell in cells):
        named.remove("budget")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in named:
        table.add_column(escape(heading))
    table.add_column("runs", justify="right")
    for heading in ("steps", "a step", "a run") if estimates else ():
        table.add_column(heading, justify="right")
    for group, members in groups.items():
        axes = members[0].axes
        cost: tuple[str, ...] = ()
        if (one := estimates.get(group)) is not None:
            known = one.problem is None
            step = f"{one.step_seconds:.3g} s"
            cost = (str(one.steps), step, duration(one.seconds)) if known else ("?", "?", "?")
        names = ("-" if axes[name] is None else escape(word(axes[name])) for name in named)
        table.add_row(*names, str(len(members)), *cost)
    return table


class Display:
    """Lines for runs that have ended, and below them, on a terminal, those that are being made.

    Of ``total`` runs ``todo`` are still to be made; ``slots`` at a time decide the time left.
    """

    def __init__(self, console: Console, *, total: int, todo: Sequence[Cell], slots: int) -> None:
        self.console = console
        self._total, self._ended, self._slots = total, total - len(todo), slots
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
        self._all = self._progress.add_task("all runs", total=total, completed=self._ended, note="")
        self._tasks: dict[str, tuple[TaskID, float]] = {}
        self._took: dict[str, list[float]] = {}
        self._waiting = [cell.group for cell in todo]

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

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
            self._took.setdefault(cell.group, []).append(seconds)
        if cell.group in self._waiting:
            self._waiting.remove(cell.group)
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
        each = [statistics.mean(self._took.get(group, known)) for group in self._waiting]
        return f"about {duration(sum(each) / self._slots)} left"

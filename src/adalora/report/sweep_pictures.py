"""Pictures of a sweep: score against trained parameters, and what each method cost."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adalora.report.drawing import MUTED, Picture, draw, log_scale, new_figure, pens
from adalora.results.columns import Column
from adalora.results.rows import Row
from adalora.results.scores import ScoreTable
from adalora.results.sources import Run
from adalora.results.words import compact

__all__ = ["frontier", "sweep_pictures"]


def sweep_pictures(table: ScoreTable) -> Iterator[Picture]:
    """The Pareto picture of each column, then throughput and memory."""
    for number, column in enumerate(table.all_columns, 1):
        if sum(title == column.title for _, title in table.figures) > 1:
            yield draw(
                f"pareto-{number}",
                f"Score against trained parameters: {column.title}",
                f"{column.unit} on {column.split}, percent, at the last epoch; parameters at the "
                "end of training, as the paper counts them.",
                lambda column=column: _pareto(table, column),  # type: ignore[misc]
            )
    for name, title, description, label, measure in (
        (
            "throughput",
            "Throughput",
            "Training tokens per second without padding, each run a dot, the mean a bar. Runs that "
            "shared a machine slowed one another.",
            "tokens per second",
            lambda run: run.record.tokens_per_second,
        ),
        (
            "memory",
            "Peak memory",
            "Largest memory in use during the run, each run a dot, the mean a bar.",
            "GiB",
            lambda run: (run.record.peak_memory_bytes or 0) / 2**30 or None,
        ),
    ):
        if any(measure(run) is not None for row in table.rows for run in row.all_runs):
            yield draw(
                name,
                title,
                description,
                lambda label=label, measure=measure: _cost(table.rows, label, measure),  # type: ignore[misc]
            )


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, score) that no other point beats with as low or lower a cost, by cost."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def _pareto(table: ScoreTable, column: Column) -> Figure:
    shown = [(index, row) for index, row in enumerate(table.rows) if row.all_runs]
    figure = new_figure(2.7 + 0.17 * -(-len(shown) // 2))
    axes = figure.add_subplot()
    points, costs, outside = [], [], []
    for (index, row), pen in zip(shown, pens(len(shown)), strict=True):
        score = table.figures.get((index, column.title))
        if score is None:
            continue
        if table.outside(index, column):
            outside.append(f"{row.label} {score.mean:.1f}")
            continue
        point = table.final(row), score.mean
        points.append(point)
        costs += [table.final(row), table.initial(row)]
        if costs[-1] != costs[-2]:
            axes.plot(costs[-2:], [score.mean] * 2, color=pen.color, alpha=0.3, linewidth=1)
            axes.plot(costs[-1], score.mean, marker=pen.marker, color=pen.color, alpha=0.3, ms=5)
        if score.deviation is not None:
            axes.errorbar(*point, yerr=score.deviation, color=pen.color, capsize=3)
        label = _wrapped(row.label, 30)
        axes.plot(*point, linestyle="", marker=pen.marker, color=pen.color, ms=6, label=label)
    axes.step(
        *zip(*frontier(points), strict=True), where="post", color=MUTED, linewidth=1, zorder=1
    )
    low, high = axes.get_ylim()
    # Far below, it would press the methods together.
    if column.majority is not None and low - 0.5 * (high - low) < column.majority:
        axes.axhline(column.majority, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    log_scale(axes, "x", costs)
    axes.margins(x=0.08, y=0.1)
    where = " outside the head" if table.outside_the_head else ""
    axes.set_xlabel(f"trained parameters{where}")
    axes.set_ylabel(column.unit)
    if outside:
        axes.set_title(_wrapped(f"outside: {', '.join(outside)}", 70), fontsize=8, color=MUTED)
    figure.legend(loc="outside lower center", ncols=2, handlelength=1)
    return figure


def _cost(rows: Sequence[Row], label: str, measure: Callable[[Run], float | None]) -> Figure:
    rows = [row for row in rows if any(measure(run) is not None for run in row.all_runs)]
    names = [_wrapped(row.label, 22) for row in rows]
    figure = new_figure(0.8 + sum(0.14 + 0.14 * (1 + name.count("\n")) for name in names))
    axes = figure.add_subplot()
    for position, (row, pen) in enumerate(zip(rows, pens(len(rows)), strict=True)):
        values = [value for run in row.all_runs if (value := measure(run)) is not None]
        mean = sum(values) / len(values)
        axes.barh(position, mean, color=pen.color, alpha=0.35, height=0.6)
        axes.plot(
            values, [position] * len(values), linestyle="", marker=pen.marker, color=pen.color
        )
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.set_xlabel(label)
    return figure


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, max_lines=3, placeholder=" …")

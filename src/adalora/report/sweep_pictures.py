"""Pictures of a sweep: score against trained parameters, and what each method cost."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adalora.report.drawing import MUTED, Picture, draw, log_scale, new_figure, pens
from adalora.report.sources import RunSource
from adalora.report.summary import Row, Summary
from adalora.results.words import compact

__all__ = ["frontier", "sweep_pictures"]


def sweep_pictures(summary: Summary) -> Iterator[Picture]:
    """The Pareto picture of each column, then throughput and memory."""
    for index, column in enumerate(summary.columns):
        if sum(bool(row.cells[index].values) for row in summary.rows) > 1:
            yield draw(
                f"pareto-{index + 1}",
                f"Score against trained parameters: {column.heading}",
                f"{column.metric.replace('_', ' ')} on {column.split}, times 100, at the end.",
                lambda index=index: _pareto(summary, index),  # type: ignore[misc]
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
        if any(measure(run) is not None for row in summary.rows for run in row.runs):
            yield draw(
                name,
                title,
                description,
                lambda label=label, measure=measure: _cost(summary.rows, label, measure),  # type: ignore[misc]
            )


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (cost, score) that no other point beats with as low or lower a cost, by cost."""
    best: list[tuple[float, float]] = []
    for cost, score in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or score > best[-1][1]:
            best.append((cost, score))
    return best


def _pareto(summary: Summary, index: int) -> Figure:
    column = summary.columns[index]
    shown = [(row, row.cells[index]) for row in summary.rows]
    lines = -(-len(shown) // 2)
    # The head is the same for all, and would hide by how much they differ.
    count = "adapter_initial"
    if not all(run.record.parameters[count] for row in summary.rows for run in row.runs):
        count = "trained"
    figure = new_figure(2.7 + 0.17 * lines)
    axes = figure.add_subplot()
    points = []
    for (row, cell), pen in zip(shown, pens(len(shown)), strict=True):
        if cell.mean is None:
            continue
        own = [run for run in row.runs if column.split in run.record.scores]
        cost = sum(run.record.parameters[count] for run in own) / max(len(own), 1)
        points.append((cost, 100 * cell.mean))
        if cell.deviation is not None:
            axes.errorbar(*points[-1], yerr=100 * cell.deviation, color=pen.color, capsize=3)
        label = _wrapped(row.label, 30)
        axes.plot(*points[-1], linestyle="", marker=pen.marker, color=pen.color, ms=6, label=label)
    edge = frontier(points)
    axes.step(*zip(*edge, strict=True), where="post", color=MUTED, linewidth=1, zorder=1)
    low, high = axes.get_ylim()
    # Far below, it would press the methods together.
    if low - 0.5 * (high - low) < 100 * column.majority:
        axes.axhline(100 * column.majority, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    log_scale(axes, "x", [cost for cost, _ in points])
    axes.margins(x=0.08, y=0.1)
    outside = " outside the head" if count == "adapter_initial" else ""
    axes.set_xlabel(f"trained parameters{outside}")
    axes.set_ylabel(column.metric.replace("_", " "))
    figure.legend(loc="outside lower center", ncols=2, handlelength=1)
    return figure


def _cost(rows: Sequence[Row], label: str, measure: Callable[[RunSource], float | None]) -> Figure:
    rows = [row for row in rows if any(measure(run) is not None for run in row.runs)]
    names = [_wrapped(row.label, 22) for row in rows]
    figure = new_figure(0.8 + sum(0.14 + 0.14 * (1 + name.count("\n")) for name in names))
    axes = figure.add_subplot()
    for position, (row, pen) in enumerate(zip(rows, pens(len(rows)), strict=True)):
        values = [value for run in row.runs if (value := measure(run)) is not None]
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

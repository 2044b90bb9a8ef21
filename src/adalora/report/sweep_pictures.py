"""Pictures of a sweep: score against trained parameters, and what each method cost.

A method stands where the parameters that it keeps put it, as the paper counts; a faint mark shows
those it began with. The axis of the scores is the range of the methods that work; what lies outside
is in a part of its own, under or over a break of the axis, with its scores written out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from adalora.report.drawing import (
    MUTED,
    Pen,
    Picture,
    draw,
    log_scale,
    new_drawing,
    new_figure,
    pens,
)
from adalora.results.columns import Column
from adalora.results.record import RunRecord
from adalora.results.rows import Row
from adalora.results.scores import ScoreTable
from adalora.results.words import compact


@dataclass(frozen=True)
class Point:
    """A method in one column."""

    label: str  #: its name
    pen: Pen  #: the same in every picture of the sweep
    final: float  #: trained parameters that it keeps
    initial: float  #: those that it began with
    score: float  #: mean over the seeds, in percent
    deviation: float | None = None  #: over the seeds; None where there is one


def sweep_pictures(table: ScoreTable) -> Iterator[Picture]:
    """Score against parameters for each column, then throughput and memory."""
    own = pens(len(table.rows))
    outside_the_head = " outside the head" if table.outside_the_head else ""
    for number, column in enumerate(table.all_columns, 1):
        points = [
            Point(row.label, pen, table.final(row), table.initial(row), cell.mean, cell.deviation)
            for index, (row, pen) in enumerate(zip(table.rows, own, strict=True))
            if (cell := table.figures.get((index, column.title))) is not None
        ]
        if len(points) > 1:
            yield draw(
                f"pareto-{number}",
                f"Score against trained parameters: {column.title}",
                _description(column, points, main_range(points, table.focus[column.title])),
                lambda points=points, column=column: score_against_parameters(  # type: ignore[misc]
                    points,
                    limits=main_range(points, table.focus[column.title]),
                    baseline=column.majority,
                    x_label=f"trained parameters{outside_the_head}",
                    y_label=column.unit,
                ),
            )
    for name, title, description, label, measure in (
        (
            "throughput",
            "Throughput",
            "Training tokens per second without padding, each run a dot, the mean a bar. Runs that "
            "shared a machine slowed one another.",
            "tokens per second",
            lambda record: record.tokens_per_second,
        ),
        (
            "memory",
            "Peak memory",
            "Largest memory in use during the run, each run a dot, the mean a bar.",
            "GiB",
            lambda record: (record.peak_memory_bytes or 0) / 2**30 or None,
        ),
    ):
        if any(measure(run.record) is not None for row in table.rows for run in row.all_runs):
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


def main_range(points: Sequence[Point], focus: tuple[float, float]) -> tuple[float, float]:
    """The scores of the main part: ``focus``, or all where they span hardly more than it does."""
    low, high = min(one.score for one in points), max(one.score for one in points)
    low, high = min(low, focus[0]), max(high, focus[1])
    if high - low > 3 * (focus[1] - focus[0]):
        return focus
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _description(column: Column, points: Sequence[Point], limits: tuple[float, float]) -> str:
    sentence = f"{column.unit} on {column.split}, percent, at the last epoch."
    outside = [one for one in points if not limits[0] <= one.score <= limits[1]]
    if outside:
        named = "; ".join(f"{one.label} {one.score:.2f}" for one in outside)
        sentence += f" Outside the range of the methods that work: {named}."
    return sentence[:1].upper() + sentence[1:]


def score_against_parameters(
    points: Sequence[Point],
    *,
    limits: tuple[float, float],
    baseline: float | None,
    x_label: str,
    y_label: str,
) -> Figure:
    """The picture of one column.

    Args:
        limits: lowest and highest score of the main part.
        baseline: score of the most frequent answer, drawn where it lies between them.
    """
    low, high = limits
    over = [one for one in points if one.score > high]
    under = [one for one in points if one.score < low]
    parts = [part for part in (over, None, under) if part is None or part]
    lines = sum(1 + _wrapped(one.label, 30).count("\n") for one in points)
    figure = new_figure(2.1 + 0.6 * len(parts) + 0.09 * (lines + 1))
    grid = figure.subplots(
        len(parts),
        1,
        sharex=True,
        squeeze=False,
        height_ratios=[4 if part is None else 1 for part in parts],
    )
    main = grid[parts.index(None), 0]
    drawn = [
        _mark(grid[0, 0] if one in over else grid[-1, 0] if one in under else main, one)
        for one in points
    ]
    for axes, part in zip(grid[:, 0], parts, strict=True):
        if part is not None:
            _write_out(axes, part)
    edge = frontier([(one.final, one.score) for one in points])
    main.step(*zip(*edge, strict=True), where="post", color=MUTED, linewidth=1, zorder=1)
    if baseline is not None and low <= baseline <= high:
        main.axhline(baseline, color=MUTED, linewidth=1, linestyle="--", zorder=1)
    main.set_ylim(low, high)
    main.set_ylabel(textwrap.fill(y_label, 26))
    figure.align_ylabels()
    _break_axis([*grid[:, 0]])
    last = grid[-1, 0]
    log_scale(last, "x", [count for one in points for count in (one.final, one.initial)])
    last.margins(x=0.08)
    last.set_xlabel(x_label)
    figure.legend(handles=drawn, loc="outside lower center", ncols=2, handlelength=1)
    return figure


def _mark(axes: Axes, one: Point) -> Line2D:
    """The method at the parameters that it keeps, joined to a faint mark where it began."""
    pen = one.pen
    if one.initial != one.final:
        ends, scores = [one.final, one.initial], [one.score, one.score]
        axes.plot(ends, scores, color=pen.color, alpha=0.4, linewidth=1, zorder=1.5)
        axes.plot(ends[1:], scores[1:], pen.marker, color=pen.color, mfc="white", alpha=0.4, ms=5)
    if one.deviation is not None:
        axes.errorbar(one.final, one.score, yerr=one.deviation, color=pen.color, capsize=3)
    label = _wrapped(one.label, 30)
    return axes.plot(one.final, one.score, pen.marker, color=pen.color, ms=6, label=label)[0]


def _write_out(axes: Axes, points: Sequence[Point]) -> None:
    """Limits and marks of a part outside the main one: the scores themselves, if there is room."""
    scores = sorted({one.score for one in points})
    spread = max([one.deviation or 0.0 for one in points] + [scores[-1] - scores[0], 1.0])
    low, high = scores[0] - 0.6 * spread, scores[-1] + 0.6 * spread
    shown = scores[:1]
    for score in scores[1:]:
        if score - shown[-1] > 0.35 * (high - low):
            shown.append(score)
    axes.set_ylim(low, high)
    axes.set_yticks(shown, [f"{score:.2f}" for score in shown])
    axes.set_ylabel("outside")


def _break_axis(parts: Sequence[Axes]) -> None:
    """Slanted strokes at the ends of the axis where one part ends and the next begins."""
    for upper, lower in pairwise(parts):
        upper.spines.bottom.set_visible(False)
        upper.tick_params(axis="x", which="both", length=0)
        for axes, end in ((upper, 0), (lower, 1)):
            axes.plot(
                [0],
                [end],
                transform=axes.transAxes,
                marker=[(-1, -0.5), (1, 0.5)],
                markersize=9,
                color=MUTED,
                linestyle="",
                clip_on=False,
            )


def _cost(rows: Sequence[Row], label: str, measure: Callable[[RunRecord], float | None]) -> Figure:
    found = {
        row.label: values
        for row in rows
        if (values := [v for run in row.all_runs if (v := measure(run.record)) is not None])
    }
    names = [_wrapped(name, 22) for name in found]
    figure, axes = new_drawing(0.8 + sum(0.14 + 0.14 * (1 + name.count("\n")) for name in names))
    for position, (values, pen) in enumerate(zip(found.values(), pens(len(found)), strict=True)):
        mean = sum(values) / len(values)
        axes.barh(position, mean, color=pen.color, alpha=0.35, height=0.6)
        axes.plot(
            values, [position] * len(values), linestyle="", marker=pen.marker, color=pen.color
        )
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda value, _: compact(value))
    axes.set_xlabel(label)
    return figure


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, max_lines=3, placeholder=" …")

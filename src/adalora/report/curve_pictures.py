"""Pictures of what was learnt: losses and metrics over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adalora.report.drawing import (
    MUTED,
    Plan,
    log_scale,
    new_drawing,
    new_figure,
    pens,
    steps_axis,
    thinned,
)
from adalora.results.history import History, Point

_NOT_METRICS = ("loss", "runtime", "samples", "samples_per_second", "steps_per_second")
# So many losses and the single ones hide the trend.
_MANY = 40


def curve_pictures(
    history: History, main_metric: str | None, majority: float | None
) -> Iterator[Plan]:
    """What is drawn of a run: those pictures that it has something for.

    ``majority`` is the ``main_metric`` of always answering the most frequent class.
    """
    training, evaluation = history.series("loss"), history.series("eval_loss")
    penalty = [point for point in history.series("orth_penalty") if point[1] > 0]
    if len(training) > 1:
        yield (
            "loss",
            "Loss",
            "Loss of the task on the training batches"
            + (" and on the evaluation set" if evaluation else "")
            + ("; below, the orthogonality penalty, which is not part of it" if penalty else "")
            + ".",
            lambda: _losses(training, evaluation, penalty),
        )
    metrics = {name: history.series(f"eval_{name}") for name in _metric_names(history)}
    metrics = {name: points for name, points in metrics.items() if points}
    if any(len(points) > 1 for points in metrics.values()):
        yield (
            "metrics",
            "Metrics",
            "Metrics on the evaluation set during training"
            + ("" if majority is None else "; dashed, the most frequent answer alone")
            + ".",
            lambda: _metrics(metrics, main_metric, majority),
        )


def _metric_names(history: History) -> list[str]:
    names = dict.fromkeys(key for entry in history.log_history for key in entry)
    found = (name.removeprefix("eval_") for name in names if name.startswith("eval_"))
    return [name for name in found if name not in _NOT_METRICS]


def _plot(axes: Axes, points: Sequence[Point], **style: Any) -> None:
    steps, values = zip(*thinned(points), strict=True)
    axes.plot(steps, values, **style)


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """A running mean that follows with a delay of about a thirtieth of the run."""
    rate = min(1.0, 30 / len(points))
    mean = points[0][1]
    result = []
    for step, value in points:
        mean += rate * (value - mean)
        result.append((step, mean))
    return result


def _losses(
    training: Sequence[Point], evaluation: Sequence[Point], penalty: Sequence[Point]
) -> Figure:
    if penalty:
        figure = new_figure(3.8)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        _plot(below, penalty, color=MUTED)
        log_scale(below, "y", [value for _, value in penalty], powers=True)
        below.set_ylabel("penalty")
    else:
        figure = new_figure(3.1)
        above = below = figure.add_subplot()
    blue, orange = pens(2)
    if len(training) > _MANY:
        _plot(above, training, color=blue.color, alpha=0.3, linewidth=0.8, label="training")
        _plot(above, _smoothed(training), color=blue.color, label="training, smoothed")
    else:
        _plot(above, training, color=blue.color, label="training")
    if evaluation:
        _plot(above, evaluation, **vars(orange), label="evaluation")
    above.set_ylabel("loss")
    steps_axis(below)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _metrics(
    metrics: dict[str, list[Point]], main_metric: str | None, majority: float | None
) -> Figure:
    figure, axes = new_drawing(3.1)
    for (name, points), pen in zip(metrics.items(), pens(len(metrics)), strict=True):
        _plot(axes, points, **vars(pen), label=name.replace("_", " "))
    if majority is not None and main_metric in metrics:
        axes.axhline(
            majority, color=MUTED, linewidth=1, linestyle="--", label="most frequent answer"
        )
    axes.set_ylabel("metric")
    steps_axis(axes)
    figure.legend(loc="outside lower center", ncols=3)
    return figure

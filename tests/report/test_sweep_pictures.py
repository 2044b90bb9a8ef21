"""Score against parameters: methods at what they keep, and no outlier that hides the others."""

from __future__ import annotations

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adalora.report.drawing import pens
from adalora.report.sweep_pictures import Point, frontier, main_range, score_against_parameters

FOCUS = (79.0, 84.5)


def points(*scores: float, initial: float = 100.0) -> list[Point]:
    return [
        Point(f"method {index}", pen, 100.0, initial, score, 0.5)
        for index, (score, pen) in enumerate(zip(scores, pens(len(scores)), strict=True))
    ]


def drawn(own: list[Point], baseline: float | None = None) -> Figure:
    figure = score_against_parameters(
        own,
        limits=main_range(own, FOCUS),
        baseline=baseline,
        x_label="parameters",
        y_label="score",
    )
    figure.canvas.draw()
    return figure


def main_part(figure: Figure) -> Axes:
    return next(axes for axes in figure.axes if axes.get_ylabel() == "score")


def marked(axes: Axes) -> dict[str, tuple[float, float]]:
    """Name of each method that is drawn in a part -> where its mark is."""
    lines, names = axes.get_legend_handles_labels()
    return {
        name: (line.get_xdata()[0], line.get_ydata()[0])  # type: ignore[attr-defined]
        for line, name in zip(lines, names, strict=True)
    }


def test_the_axis_is_the_range_of_the_methods_that_work_and_the_rest_is_written_out() -> None:
    figure = drawn(points(80.0, 83.0, 82.0, 12.49, 68.26))
    main, under = figure.axes
    assert main is main_part(figure)
    assert main.get_ylim() == FOCUS
    assert set(marked(main)) == {"method 0", "method 1", "method 2"}
    assert under.get_ylabel() == "outside"
    assert marked(under) == {"method 3": (100.0, 12.49), "method 4": (100.0, 68.26)}
    assert [text.get_text() for text in under.get_yticklabels()] == ["12.49", "68.26"]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [f"method {index}" for index in range(5)]


def test_what_lies_over_the_range_is_over_it() -> None:
    over, main = drawn(points(80.0, 83.0, 99.0)).axes
    assert marked(over) == {"method 2": (100.0, 99.0)}
    assert main.get_ylabel() == "score"


@pytest.mark.parametrize("scores", [(80.0, 84.0), (80.0, 83.0, 74.0)])
def test_an_axis_is_not_broken_where_all_scores_fit(scores: tuple[float, ...]) -> None:
    (main,) = drawn(points(*scores)).axes
    assert len(marked(main)) == len(scores)
    low, high = main.get_ylim()
    assert all(low < score < high for score in scores)


@pytest.mark.parametrize("score", [80.0, 12.0])
def test_a_method_stands_where_it_ends_with_a_faint_mark_where_it_began(score: float) -> None:
    figure = drawn(points(80.0, 81.0, score, initial=200.0))
    axes = next(axes for axes in figure.axes if "method 2" in marked(axes))
    assert marked(axes)["method 2"] == (100.0, score)
    faint = [line for line in axes.lines if line.get_alpha() is not None]
    assert all((line.get_alpha() or 1) < 0.5 for line in faint)
    ways = [line.get_xydata().tolist() for line in faint]  # type: ignore[union-attr]
    assert [[100.0, score], [200.0, score]] in ways
    assert [[200.0, score]] in ways


def test_a_method_that_keeps_all_has_one_mark() -> None:
    (main,) = drawn(points(80.0, 81.0)).axes
    assert not [line for line in main.lines if line.get_alpha() is not None]


@pytest.mark.parametrize(("baseline", "shown"), [(80.5, True), (52.7, False), (None, False)])
def test_the_most_frequent_answer_is_drawn_where_it_is_in_sight(
    baseline: float | None, shown: bool
) -> None:
    main = main_part(drawn(points(80.0, 81.0), baseline))
    assert any(line.get_linestyle() == "--" for line in main.lines) == shown


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ([(1, 0.5), (2, 0.6), (3, 0.55)], [(1, 0.5), (2, 0.6)]),
        ([(3, 0.9), (1, 0.9), (2, 0.8)], [(1, 0.9)]),
        ([(1, 0.4), (1, 0.5)], [(1, 0.5)]),
        ([], []),
    ],
)
def test_the_frontier_holds_what_no_cheaper_method_matches(
    found: list[tuple[float, float]], best: list[tuple[float, float]]
) -> None:
    assert frontier(found) == best

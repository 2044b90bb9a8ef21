"""Pictures of the budget: where it went, when, by what threshold, and how much it was worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adalora.report.drawing import (
    INK,
    MUTED,
    Plan,
    log_scale,
    new_drawing,
    new_figure,
    pens,
    steps_axis,
    thinned,
)
from adalora.results.history import Allocation, History
from adalora.results.words import arrange, compact, plural, rank_grid

# Light to dark, so that a print without colours reads the same.
_SHADES = "Blues"


def rank_pictures(
    rank_pattern: Mapping[str, int], init_rank: int, history: History, *, grows: bool = False
) -> Iterator[Plan]:
    """What is drawn of a run: those pictures that it has something for.

    Each matrix began with ``init_rank`` triplets, or, where it ``grows``, has room for as many; a
    method without ranks has no ``rank_pattern``.
    """
    if rank_pattern:
        yield (
            "ranks",
            "Final ranks",
            f"Triplets kept in each matrix of the {init_rank} it "
            f"{'has room for' if grows else 'began with'}: a row is a layer, a "
            f"column a kind of matrix; the darker, the more. {sum(rank_pattern.values()):,} of "
            f"{init_rank * len(rank_pattern):,} triplets are {'in use' if grows else 'left'}. The "
            "paper's Figure 3.",
            lambda: _heat_map(rank_pattern, init_rank),
        )
    allocations = thinned(
        history.allocations if grows else _from_the_start(history.allocations, init_rank)
    )
    if len(allocations) > 1:
        yield (
            "ranks-by-kind",
            "Ranks over time, by kind of matrix",
            "Mean number of triplets that a matrix of each kind had after each pruning.",
            lambda: _by_kind(allocations),
        )
        yield (
            "ranks-by-layer",
            "Ranks over time, by layer",
            "Triplets that each layer had after each pruning: steps to the right, a row a layer; "
            "the darker, the more.",
            lambda: _by_layer(allocations),
        )
        yield (
            "budget",
            "Budget and threshold",
            f"Above, the triplets allowed in the whole model, from {allocations[0].budget:,} to "
            f"{allocations[-1].budget:,}. Below, the score at or under which triplets were pruned.",
            lambda: _budget(allocations),
        )
    scores = {
        name: usable
        for name, values in (history.importance or {}).items()
        if (usable := [score for score in values if math.isfinite(score) and score > 0])
    }
    if scores:
        kept = sum(rank_pattern.values()) if rank_pattern else 0
        yield (
            "importance",
            "Importance of the triplets at the end",
            "Scores of all triplets from the most to the least important. Those left of the line "
            f"fit into the final budget of {plural(kept, 'triplet')}. In the final phase the "
            "scores stand still.",
            lambda: _importance(scores, kept),
        )


def _from_the_start(allocations: Sequence[Allocation], init_rank: int) -> Sequence[Allocation]:
    """With the full ranks of step 0 before the first pruning, so that the warm-up is seen."""
    if not allocations or allocations[0].step == 0:
        return allocations
    ranks = dict.fromkeys(allocations[0].ranks, init_rank)
    budget = sum(ranks.values())
    opening = [Allocation(step, budget, None, ranks) for step in (0, allocations[0].step - 1)]
    return [*opening, *allocations]


def _short(kind: str) -> str:
    return kind.replace(".", ".\n") if len(kind) > 9 else kind


def _heat_map(rank_pattern: Mapping[str, int], init_rank: int) -> Figure:
    kinds, layers = rank_grid(rank_pattern)
    grid = np.array(
        [[ranks.get(kind, np.nan) for kind in kinds] for ranks in layers.values()], dtype=float
    )
    figure, axes = new_drawing(1.0 + 0.24 * max(len(layers), 4))
    top = max(init_rank, 1)
    mesh = axes.pcolormesh(grid, cmap=_SHADES, vmin=0, vmax=top, edgecolor="white", linewidth=1)
    for (row, column), rank in np.ndenumerate(grid):
        if not math.isnan(rank):
            shade = "white" if rank > 0.6 * top else INK
            axes.text(column + 0.5, row + 0.5, f"{rank:.0f}", color=shade, ha="center", va="center")
    axes.grid(False)
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(kinds)) + 0.5, [_short(kind) for kind in kinds], fontsize=7.5)
    axes.set_yticks(np.arange(len(layers)) + 0.5, list(layers))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("layer")
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30)
    bar.set_ticks([0, top] if top < 3 else [0, top // 2, top])
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _grouped(allocations: Sequence[Allocation], by: str) -> dict[str, tuple[list[int], int]]:
    """Group -> (triplets after each pruning, matrices in it); groups are layers or kinds."""
    places = arrange(allocations[0].ranks)
    groups: dict[str, list[str]] = {}
    for path, place in places.items():
        groups.setdefault(place.layer if by == "layer" else place.kind, []).append(path)
    return {
        name: ([sum(one.ranks.get(path, 0) for path in paths) for one in allocations], len(paths))
        for name, paths in groups.items()
    }


def _by_kind(allocations: Sequence[Allocation]) -> Figure:
    figure, axes = new_drawing(3.1)
    steps = [one.step for one in allocations]
    groups = _grouped(allocations, "kind")
    for (kind, (totals, matrices)), pen in zip(groups.items(), pens(len(groups)), strict=True):
        axes.plot(
            steps,
            [total / matrices for total in totals],
            **vars(pen),
            markevery=max(len(steps) // 8, 1),
            label=kind,
        )
    axes.set_ylim(bottom=0)
    axes.set_ylabel("triplets per matrix")
    steps_axis(axes)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def _by_layer(allocations: Sequence[Allocation]) -> Figure:
    groups = _grouped(allocations, "layer")
    first, last = allocations[0].step, max(allocations[-1].step, allocations[0].step + 1)
    # Prunings are not evenly spaced (each step of the final phase is one), the columns are: each
    # shows what held at its step.
    steps = [one.step for one in allocations]
    columns = np.searchsorted(steps, np.linspace(first, last, 120), side="right") - 1
    image = np.array([totals for totals, _ in groups.values()])[:, columns]
    figure, axes = new_drawing(1.1 + 0.16 * max(len(groups), 8))
    picture = axes.imshow(
        image,
        aspect="auto",
        interpolation="none",
        cmap=_SHADES,
        vmin=0,
        extent=(first, last, len(groups) - 0.5, -0.5),
    )
    axes.grid(False)
    every = -(-len(groups) // 12)
    axes.set_yticks(range(0, len(groups), every), list(groups)[::every])
    axes.set_ylabel("layer")
    steps_axis(axes)
    bar = figure.colorbar(picture, ax=axes, pad=0.02, aspect=25)
    bar.locator = MaxNLocator(4, integer=True)
    bar.update_ticks()
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def _budget(allocations: Sequence[Allocation]) -> Figure:
    figure = new_figure(3.6)
    above, below = figure.subplots(2, 1, sharex=True)
    steps = [one.step for one in allocations]
    above.step(steps, [one.budget for one in allocations], where="post", color=pens(1)[0].color)
    above.set_ylim(bottom=0)
    above.set_ylabel("triplets")
    above.yaxis.set_major_formatter(lambda value, _: compact(value))
    cuts = [
        (one.step, one.threshold)
        for one in allocations
        if one.threshold is not None and math.isfinite(one.threshold) and one.threshold > 0
    ]
    below.plot([step for step, _ in cuts], [cut for _, cut in cuts], color=pens(2)[1].color)
    log_scale(below, "y", [cut for _, cut in cuts], powers=True)
    below.set_ylabel("threshold")
    if not cuts:
        below.text(0.5, 0.5, "nothing was pruned", transform=below.transAxes, ha="center")
    steps_axis(below)
    return figure


def _importance(scores: Mapping[str, Sequence[float]], kept: int) -> Figure:
    places = arrange(scores)
    ordered = sorted(
        ((score, places[path].kind) for path, values in scores.items() for score in values),
        key=lambda one: -one[0],
    )
    kinds = list(dict.fromkeys(place.kind for place in places.values()))
    figure, axes = new_drawing(3.2)
    for kind, pen in zip(kinds, pens(len(kinds)), strict=True):
        points = [(rank, score) for rank, (score, of) in enumerate(ordered, 1) if of == kind]
        ranks, values = zip(*thinned(points), strict=True)
        axes.plot(
            ranks, values, linestyle="", marker=pen.marker, color=pen.color, label=kind, ms=3.5
        )
    if 0 < kept < len(ordered):
        axes.axvline(kept + 0.5, color=MUTED, linewidth=1, linestyle="--")
    log_scale(axes, "y", [score for score, _ in ordered], powers=True)
    axes.set_xlabel("triplets, the most important first")
    axes.set_ylabel("score")
    figure.legend(loc="outside lower center", ncols=3, handlelength=1)
    return figure

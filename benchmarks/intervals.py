"""How often the interval of ``adalora table --against`` marks a difference between equal methods.

Two methods of the same expected accuracy are trained with k seeds each and asked n examples, many
times over. A run has a deviation of its own (its seed), a method examples that it is better or
worse at than the other (an interval that knows the seeds alone would miss those), and each answer
is right or wrong by chance. Of the marks, all are false. With one method moved up by some points,
the share of marks is the power.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.stats import norm

from adalora.results.bootstrap import half_width

__all__ = ["measure", "simulate"]

Array = np.ndarray[Any, Any]
SEEDS = (3, 4, 5, 10)
#: Examples of the evaluation set: RTE's, CoLA's, about QNLI's.
EXAMPLES = (277, 1043, 5000)
#: Standard deviation over seeds in points; in the last, runs collapse now and then as well.
DEVIATIONS = (0.0, 0.5, 1.0, 2.0, "collapses")
_COLLAPSES, _COLLAPSE = 0.1, 15.0
_ACCURACY, _OWN_EXAMPLES = 0.8, 0.1
_LEVEL = 0.95
_CELLS = 1 << 23


def simulate(
    examples: int, deviation: float | str, *, seeds: int, trials: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """Equal methods compared ``trials`` times.

    Args:
        examples: of the evaluation set.
        deviation: of a run's accuracy over seeds, in points; "collapses" for 1 point and a chance
            of one in ten to lose 15.
        seeds: pairs of runs.
        trials: comparisons.
        random: of everything.

    Returns:
        Differences by seed in points [trials, seeds], and the variance over draws of examples of
        the mean difference of the first 1, 2, ... ``seeds`` pairs [trials, seeds].
    """
    by_seed, variance = np.empty((trials, seeds)), np.empty((trials, seeds))
    step = max(1, _CELLS // examples)
    for start in range(0, trials, step):
        part = slice(start, min(start + step, trials))
        count = part.stop - part.start
        # Of one method half the examples are easier, of the other another half.
        own = np.float32(_OWN_EXAMPLES) * random.choice(
            np.array([-1, 1], dtype=np.float32), size=(2, count, examples)
        )
        total = np.zeros((count, examples), dtype=np.float32)
        for seed in range(seeds):
            right = [
                random.random((count, examples), dtype=np.float32)
                < _ACCURACY + own[method] + _run(deviation, count, random)[:, None]
                for method in (0, 1)
            ]
            difference = right[0].astype(np.float32) - right[1]
            total += difference
            by_seed[part, seed] = 100 * difference.mean(axis=1)
            # What the bootstrap over examples estimates, and for accuracy is known.
            mean = 100 * total / (seed + 1)
            variance[part, seed] = mean.var(axis=1, dtype=np.float64) / examples
    return by_seed, variance


def _run(deviation: float | str, count: int, random: np.random.Generator) -> Array:
    points = 1.0 if isinstance(deviation, str) else deviation
    found = random.normal(scale=points, size=count)
    if isinstance(deviation, str):
        found -= _COLLAPSE * (random.random(count) < _COLLAPSES)
    return (found / 100).astype(np.float32)


def measure(*, trials: int = 2000) -> Iterator[dict[str, Any]]:
    """Share of trials with a mark, in percent, by size of the set, deviation and seeds."""
    found: dict[str, Any] = {"trials": trials, "level": _LEVEL}
    rates = []
    for examples in EXAMPLES:
        for deviation in DEVIATIONS:
            random = np.random.default_rng([examples, DEVIATIONS.index(deviation)])
            differences, variances = simulate(
                examples, deviation, seeds=max(SEEDS), trials=trials, random=random
            )
            points = deviation if isinstance(deviation, str) else f"{deviation:g} points"
            cells = {"1 seed": {"before": _before(differences[:, :1], variances[:, 0])}}
            for seeds in SEEDS:
                by_seed, variance = differences[:, :seeds], variances[:, seeds - 1]
                half = half_width([by_seed], variance, _LEVEL)
                mean = by_seed.mean(axis=1)
                cells[f"{seeds} seeds"] = {
                    "equal": _share(np.abs(mean) > half),
                    "before": _before(by_seed, variance),
                    **{f"{up} points": _share(mean + up > half) for up in (1, 2, 5)},
                }
                rates.append(cells[f"{seeds} seeds"]["equal"])
            found[f"{examples} examples, {points}"] = cells
            yield found
    found["largest rate at equal methods"] = max(rates)
    yield found


def _before(by_seed: Array, variance: Array) -> float:
    """Marks by a bootstrap over seeds and examples together, as it was done: about normal."""
    seeds = by_seed.shape[1]
    half = norm.ppf((1 + _LEVEL) / 2) * np.sqrt(by_seed.var(axis=1) / seeds + variance)
    return _share(np.abs(by_seed.mean(axis=1)) > half)


def _share(marked: Array) -> float:
    return round(100 * float(marked.mean()), 2)

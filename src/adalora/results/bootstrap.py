"""The difference between two methods on one evaluation set, and an interval that holds.

Two things are chance: how a training happened to go, and which examples were asked. Of the first,
k pairs of runs with the same seed give a variance with k - 1 degrees of freedom; of the second, a
paired bootstrap over the examples. A bootstrap over k seeds as well would shrink the first by
(k - 1) / k and take it for known, so that at three seeds equal methods differ "significantly" in
about one case of ten instead of one of twenty.

The interval is Banerjee's (Sankhya 22, 1960, p. 357): half its width is the root of the sum of
t_i**2 * v_i, each variance v_i with the quantile of Student's t for its own degrees of freedom. For
normal errors it holds at least as often as its level says, whatever the variances are: given them,
the chance is a concave function of the squared half width, which is a mean of squared half widths
that hold exactly. What the two share, the noise of one run on one example, is counted in both,
which widens it a little. ``python -m benchmarks intervals`` shows how often it holds.

Drawing examples is weighting each by how often it was drawn, so every metric here is a function of
counts, exact also for ties: no replicate sorts or loops by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import norm, t

Array = np.ndarray[Any, Any]
#: With fewer pairs of runs no interval is given: the seeds' chance is not known, or hardly.
LEAST_SEEDS = 3
# Cells of the matrix of counts that are in memory at once; 32 MiB in float64.
_CELLS = 1 << 22


def bootstrap_differences(
    metric: str, labels: Array, ours: Array, theirs: Array, *, resamples: int, random: Any
) -> tuple[Array, Array]:
    """metric(ours) - metric(theirs) for each seed, and replicates of its mean over the seeds.

    Args:
        metric: a key of ``METRICS``.
        labels: class indices [n], or numbers for ``correlation``.
        ours: predictions [seeds, n]; ``theirs`` likewise, row by row of the same seeds.
        resamples: replicates.
        random: a ``numpy.random.Generator``, in one state wherever the same examples are asked, so
            that accuracy and F1 of one task, or two methods, are drawn alike.

    Returns:
        The differences [seeds], and the replicates [resamples], in which the examples are drawn
        with replacement, the same for both methods and all their seeds.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if ours.shape != theirs.shape or ours.shape[1:] != labels.shape or ours.size == 0:
        raise ValueError(
            f"shapes {ours.shape} and {theirs.shape} do not fit one another or labels of shape "
            f"{labels.shape}"
        )
    score, examples = METRICS[metric], ours.shape[1]

    def differences(counts: Array) -> Array:
        """[replicates, seeds]"""
        pairs = zip(ours, theirs, strict=True)
        columns = [score(labels, a, counts) - score(labels, b, counts) for a, b in pairs]
        return np.stack(columns, axis=1)

    replicates = np.empty(resamples)
    step = max(1, _CELLS // examples)
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        drawn = _draw(random, part.stop - part.start, examples)
        replicates[part] = differences(drawn).mean(axis=1)
    return differences(np.ones((1, examples)))[0], replicates


def half_width(by_seed: Sequence[Array], variance: Array | float, level: float) -> Array:
    """Half the width of the interval around a mean difference.

    Args:
        by_seed: differences [..., k] of k at least 2 seeds; several arrays where the mean
            difference is the sum of the means of runs with other seeds.
        variance: [...] of the mean difference over draws of examples; 0 for these very examples.
        level: such as 0.95.

    Returns:
        [...], in the unit of the differences.
    """
    tail = (1 + level) / 2
    square = norm.ppf(tail) ** 2 * np.asarray(variance)
    for values in by_seed:
        seeds = values.shape[-1]
        square = square + t.ppf(tail, seeds - 1) ** 2 * values.var(axis=-1, ddof=1) / seeds
    return np.sqrt(square)


def _draw(random: np.random.Generator, replicates: int, size: int) -> Array:
    """How often each of ``size`` things is drawn in ``size`` draws: [replicates, size]."""
    drawn = random.integers(size, size=(replicates, size))
    drawn += size * np.arange(replicates)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=replicates * size)
    return counts.reshape(replicates, size).astype(np.float64)


# ---- metrics of (labels [n], predictions [n], counts [replicates, n]) -> [replicates] ----


def _accuracy(labels: Array, guesses: Array, counts: Array) -> Array:
    return counts @ (labels == guesses).astype(np.float64) / counts.sum(axis=1)


def _f1(labels: Array, guesses: Array, counts: Array) -> Array:
    """Of class 1; 0 where it is neither there nor answered, as in ``adalora.glue.metrics``."""
    hits = counts @ ((labels == 1) & (guesses == 1)).astype(np.float64)
    both = counts @ ((labels == 1).astype(np.float64) + (guesses == 1))
    return _ratio(2 * hits, both)


def _matthews(labels: Array, guesses: Array, counts: Array) -> Array:
    """For any number of classes (Gorodkin 2004); 0 where it is not defined."""
    classes = np.unique(np.concatenate([labels, guesses]))
    true = counts @ (labels[:, None] == classes).astype(np.float64)
    guessed = counts @ (guesses[:, None] == classes).astype(np.float64)
    right = counts @ (labels == guesses).astype(np.float64)
    size = counts.sum(axis=1)
    covariance = right * size - (true * guessed).sum(axis=1)
    spread = (size**2 - (true**2).sum(axis=1)) * (size**2 - (guessed**2).sum(axis=1))
    return _ratio(covariance, np.sqrt(spread))


def _correlation(labels: Array, guesses: Array, counts: Array) -> Array:
    """Mean of Pearson's and Spearman's correlation, as the paper reports STS-B."""
    spearman = _pearson(_ranks(labels, counts), _ranks(guesses, counts), counts)
    return (_pearson(labels, guesses, counts) + spearman) / 2


def _pearson(x: Array, y: Array, counts: Array) -> Array:
    """Of values that are the same in every replicate [n], or not [replicates, n]."""
    size = counts.sum(axis=1, keepdims=True)
    x = x - (counts * x).sum(axis=1, keepdims=True) / size
    y = y - (counts * y).sum(axis=1, keepdims=True) / size
    covariance = (counts * x * y).sum(axis=1)
    return _ratio(covariance, np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1)))


def _ranks(values: Array, counts: Array) -> Array:
    """Rank of each value among those drawn, ties sharing their mean rank: [replicates, n]."""
    _, groups = np.unique(values, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(groups.max() + 1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = sizes.cumsum(axis=1) - sizes / 2 + 0.5
    return ranks[:, groups]


def _ratio(above: Array, below: Array) -> Array:
    # A spread that is zero but for rounding must not become a correlation.
    defined = below > 1e-9
    return np.divide(above, below, out=np.zeros_like(above), where=defined)


METRICS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "correlation": _correlation,
    "pearson": _pearson,
}

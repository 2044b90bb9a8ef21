"""Paired bootstrap of the difference between two methods on one evaluation set.

A replicate draws examples with replacement, the same for both methods and all their seeds, and
seeds with replacement, in pairs, where there are several: both what was asked and how a training
happened to go are chance. Drawing examples is weighting each by how often it was drawn, so every
metric here is a function of counts, exact also for ties: no replicate sorts or loops by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["METRICS", "bootstrap_differences", "interval"]

Array = np.ndarray[Any, Any]
# Cells of the matrix of counts that are in memory at once; 32 MiB in float64.
_CELLS = 1 << 22


def bootstrap_differences(
    metric: str,
    labels: Array,
    ours: Array,
    theirs: Array,
    *,
    resamples: int,
    draw_examples: np.random.Generator,
    draw_seeds: np.random.Generator,
) -> tuple[float, Array]:
    """The mean over seeds of metric(ours) - metric(theirs), and its bootstrap replicates.

    Args:
        metric: a key of ``METRICS``.
        labels: class indices [n], or numbers for ``correlation``.
        ours: predictions [seeds, n].
        theirs: likewise; row by row of the same seeds.
        resamples: replicates.
        draw_examples: in one state wherever the same examples are asked, so that accuracy and F1
            of one task, or two methods, are drawn alike.
        draw_seeds: likewise, for the runs of one task.

    Returns:
        The difference, and the replicates [resamples].

    Raises:
        ValueError: if the shapes do not fit together.
    """
    if ours.shape != theirs.shape or ours.shape[1:] != labels.shape or ours.size == 0:
        raise ValueError(
            f"shapes {ours.shape} and {theirs.shape} do not fit one another or labels of shape "
            f"{labels.shape}"
        )
    score, (seeds, examples) = METRICS[metric], ours.shape

    def differences(counts: Array) -> Array:
        """[replicates, seeds]"""
        pairs = zip(ours, theirs, strict=True)
        columns = [score(labels, a, counts) - score(labels, b, counts) for a, b in pairs]
        return np.stack(columns, axis=1)

    point = float(differences(np.ones((1, examples))).mean())
    weights = _draw(draw_seeds, resamples, seeds) / seeds
    replicates = np.empty(resamples)
    step = max(1, _CELLS // examples)
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        found = differences(_draw(draw_examples, part.stop - part.start, examples))
        replicates[part] = (found * weights[part]).sum(axis=1)
    return point, replicates


def interval(replicates: Array, level: float) -> tuple[float, float]:
    """The percentile interval of ``level`` (0.95: from the 2.5th to the 97.5th percentile)."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


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

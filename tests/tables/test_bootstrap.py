"""The bootstrap against scikit-learn and scipy: the metrics under resampling, and the intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from adalora.tables.bootstrap import METRICS, bootstrap_differences, interval


def correlation(truth: np.ndarray, guess: np.ndarray) -> float:
    return float((pearsonr(truth, guess)[0] + spearmanr(truth, guess)[0]) / 2)


ORACLES = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "matthews_correlation": matthews_corrcoef,
    "correlation": correlation,
    "pearson": lambda truth, guess: pearsonr(truth, guess)[0],
}


def sample(metric: str, random: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and answers that have something to do with them; numbers with many ties."""
    if metric in ("correlation", "pearson"):
        labels = random.integers(0, 11, size) / 2
        return labels, np.round(labels + random.normal(size=size), 1)
    labels = random.integers(0, 2, size)
    return labels, np.where(random.random(size) < 0.75, labels, 1 - labels)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_of_counts_is_the_metric_of_the_examples_that_were_drawn(
    metric: str, random: np.random.Generator
) -> None:
    labels, answers = sample(metric, random, 40)
    drawn = random.integers(40, size=(25, 40))
    counts = np.stack([np.bincount(one, minlength=40) for one in drawn]).astype(float)
    found = METRICS[metric](labels, answers, counts)
    expected = [ORACLES[metric](labels[one], answers[one]) for one in drawn]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_matthews_correlation_of_three_classes_is_scikit_learns(
    random: np.random.Generator,
) -> None:
    labels, answers = random.integers(0, 3, (2, 60))
    found = METRICS["matthews_correlation"](labels, answers, np.ones((1, 60)))
    assert found[0] == pytest.approx(matthews_corrcoef(labels, answers), abs=1e-12)


@pytest.mark.parametrize("metric", ["matthews_correlation", "correlation", "pearson"])
def test_a_metric_that_is_not_defined_is_zero(metric: str, random: np.random.Generator) -> None:
    labels, _ = sample(metric, random, 30)
    assert METRICS[metric](labels, np.full(30, 0.1), np.ones((1, 30)))[0] == 0


@pytest.mark.parametrize("metric", ["accuracy", "matthews_correlation", "correlation"])
def test_the_interval_of_one_seed_is_that_of_scipys_paired_bootstrap(
    metric: str, random: np.random.Generator
) -> None:
    labels, ours = sample(metric, random, 200)
    theirs = np.where(random.random(200) < 0.8, ours, sample(metric, random, 200)[1])
    oracle = ORACLES[metric]
    expected = bootstrap(
        (labels, ours, theirs),
        lambda truth, a, b: oracle(truth, a) - oracle(truth, b),
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    point, replicates = bootstrap_differences(
        metric,
        labels,
        ours[None],
        theirs[None],
        resamples=6000,
        draw_examples=np.random.default_rng(1),
        draw_seeds=np.random.default_rng(2),
    )
    assert point == pytest.approx(oracle(labels, ours) - oracle(labels, theirs), abs=1e-12)
    width = expected.high - expected.low
    assert interval(replicates, 0.95) == pytest.approx(
        (expected.low, expected.high), abs=0.12 * width
    )


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says(
    random: np.random.Generator,
) -> None:
    hits = 0
    for trial in range(200):
        labels = random.integers(0, 2, 300)
        ours = np.where(random.random(300) < 0.80, labels, 1 - labels)
        theirs = np.where(random.random(300) < 0.75, labels, 1 - labels)
        _, replicates = bootstrap_differences(
            "accuracy",
            labels,
            ours[None],
            theirs[None],
            resamples=300,
            draw_examples=np.random.default_rng(trial),
            draw_seeds=np.random.default_rng(trial),
        )
        low, high = interval(replicates, 0.8)
        hits += low <= 0.05 <= high
    # 160 expected, with a standard deviation of 5.7.
    assert 143 <= hits <= 177


def test_seeds_that_differ_widen_the_interval(random: np.random.Generator) -> None:
    labels = random.integers(0, 2, 500)

    def answers(accuracy: float) -> np.ndarray:
        return np.where(random.random(500) < accuracy, labels, 1 - labels)

    def width(ours: np.ndarray) -> float:
        theirs = np.stack([labels] * 3)
        _, replicates = bootstrap_differences(
            "accuracy",
            labels,
            ours,
            theirs,
            resamples=2000,
            draw_examples=np.random.default_rng(1),
            draw_seeds=np.random.default_rng(2),
        )
        low, high = interval(replicates, 0.95)
        return high - low

    alike = width(np.stack([answers(0.8)] * 3))
    unlike = width(np.stack([answers(0.6), answers(0.8), answers(0.99)]))
    assert unlike > 2 * alike


def test_a_method_against_itself_differs_by_nothing(random: np.random.Generator) -> None:
    labels, answers = sample("accuracy", random, 50)
    point, replicates = bootstrap_differences(
        "accuracy",
        labels,
        answers[None],
        answers[None],
        resamples=50,
        draw_examples=random,
        draw_seeds=random,
    )
    assert point == 0
    assert not replicates.any()


def test_shapes_that_do_not_fit_are_refused(random: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(2, 3\) do not fit"):
        bootstrap_differences(
            "accuracy",
            np.zeros(3),
            np.zeros((1, 3)),
            np.zeros((2, 3)),
            resamples=1,
            draw_examples=random,
            draw_seeds=random,
        )


def test_replicates_do_not_depend_on_how_many_are_worked_out_at_once(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, ours = sample("accuracy", random, 64)
    found = []
    for cells in (1 << 22, 64 * 7):
        monkeypatch.setattr("adalora.tables.bootstrap._CELLS", cells)
        _, replicates = bootstrap_differences(
            "accuracy",
            labels,
            np.stack([ours, labels]),
            np.stack([labels, labels]),
            resamples=50,
            draw_examples=np.random.default_rng(3),
            draw_seeds=np.random.default_rng(4),
        )
        found.append(replicates)
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)

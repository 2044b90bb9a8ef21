"""The bootstrap against scikit-learn and scipy, and how often the intervals made with it hold."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.intervals import simulate
from scipy.stats import binom, bootstrap, pearsonr, spearmanr, t
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from adalora.results.bootstrap import METRICS, bootstrap_differences, half_width


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


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy",
        pytest.param("matthews_correlation", marks=pytest.mark.slow),
        pytest.param("correlation", marks=pytest.mark.slow),
    ],
)
def test_the_spread_over_examples_is_that_of_scipys_paired_bootstrap(
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
    )
    by_seed, replicates = bootstrap_differences(
        metric,
        labels,
        ours[None],
        theirs[None],
        resamples=6000,
        random=np.random.default_rng(1),
    )
    assert by_seed == pytest.approx([oracle(labels, ours) - oracle(labels, theirs)], abs=1e-12)
    assert replicates.std() == pytest.approx(expected.standard_error, rel=0.1)


def test_without_the_chance_of_examples_the_interval_is_students() -> None:
    values = np.array([1.0, 2.5, 4.0, 3.0])
    low, high = t.interval(0.9, 3, loc=values.mean(), scale=values.std(ddof=1) / 2)
    half = half_width([values], 0.0, 0.9)
    assert (values.mean() - half, values.mean() + half) == pytest.approx((low, high))


def test_without_the_chance_of_seeds_the_interval_is_normal() -> None:
    assert half_width([np.full(3, 2.0)], 4.0, 0.95) == pytest.approx(1.96 * 2, abs=1e-3)


def test_squared_half_widths_of_independent_parts_add_up(random: np.random.Generator) -> None:
    first, second = random.normal(size=3), random.normal(size=5)
    together = half_width([first, second], 0.5, 0.95)
    parts = [half_width([first], 0.0, 0.95), half_width([second], 0.5, 0.95)]
    assert together == pytest.approx(np.hypot(*parts))


@pytest.mark.parametrize(
    ("examples", "deviation"), [(100, 0.0), (100, 2.0), (400, 1.0), (400, "collapses")]
)
def test_equal_methods_are_marked_in_at_most_one_case_of_twenty(
    examples: int, deviation: float | str
) -> None:
    trials = 1500
    by_seed, variance = simulate(
        examples, deviation, seeds=5, trials=trials, random=np.random.default_rng(5)
    )
    # The 99.9th percentile of so many trials at exactly one in twenty.
    most = binom.ppf(0.999, trials, 0.05)
    for seeds in (3, 4, 5):
        half = half_width([by_seed[:, :seeds]], variance[:, seeds - 1], 0.95)
        assert (np.abs(by_seed[:, :seeds].mean(axis=1)) > half).sum() <= most
    # What was done before, on the same trials, does not pass where seeds matter.
    if deviation == 2.0:
        three = by_seed[:, :3]
        without_t = 1.96 * three.std(axis=1) / 3**0.5
        assert (np.abs(three.mean(axis=1)) > without_t).sum() > most
        assert (np.abs(by_seed[:, 0]) > 1.96 * variance[:, 0] ** 0.5).sum() > most


def test_a_method_against_itself_differs_by_nothing(random: np.random.Generator) -> None:
    labels, answers = sample("accuracy", random, 50)
    by_seed, replicates = bootstrap_differences(
        "accuracy", labels, answers[None], answers[None], resamples=50, random=random
    )
    assert by_seed == [0]
    assert not replicates.any()


def test_shapes_that_do_not_fit_are_refused(random: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3\) and \(2, 3\) do not fit"):
        bootstrap_differences(
            "accuracy",
            np.zeros(3),
            np.zeros((1, 3)),
            np.zeros((2, 3)),
            resamples=1,
            random=random,
        )


def test_replicates_do_not_depend_on_how_many_are_worked_out_at_once(
    random: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, ours = sample("accuracy", random, 64)
    found = []
    for cells in (1 << 22, 64 * 7):
        monkeypatch.setattr("adalora.results.bootstrap._CELLS", cells)
        _, replicates = bootstrap_differences(
            "accuracy",
            labels,
            np.stack([ours, labels]),
            np.stack([labels, labels]),
            resamples=50,
            random=np.random.default_rng(3),
        )
        found.append(replicates)
    np.testing.assert_allclose(found[0], found[1], atol=1e-12)

"""Metrics against their textbook formulas in plain Python, and predictions on disk."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adalora.errors import UserError
from adalora.glue.metrics import GlueMetric, compute_glue_metrics
from adalora.glue.predictions import write_predictions
from adalora.glue.tasks import TASKS

GUESS, TRUTH = [1, 1, 0, 0, 1, 0, 1], [1, 0, 0, 1, 1, 0, 1]  # tp 3, fp 1, fn 1, tn 2
NUMBERS, SCORES = [1.0, 2.0, 2.5, 4.5], [0.5, 2.5, 2.0, 5.0]


def plain_pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    up = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return up / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def ranks(values: list[float]) -> list[float]:
    """Ranks from 1; ties share the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("cola", {"matthews_correlation": (3 * 2 - 1 * 1) / math.sqrt(4 * 4 * 3 * 3)}),
        ("sst2", {"accuracy": 5 / 7}),
        ("rte", {"accuracy": 5 / 7}),
        ("mrpc", {"accuracy": 5 / 7, "f1": 0.75, "combined_score": (5 / 7 + 0.75) / 2}),
        ("qqp", {"accuracy": 5 / 7, "f1": 0.75, "combined_score": (5 / 7 + 0.75) / 2}),
        (None, {"accuracy": 5 / 7, "f1": 0.75}),
    ],
)
def test_classes_against_counts(task: str | None, expected: dict[str, float]) -> None:
    assert compute_glue_metrics(task, GUESS, TRUTH) == pytest.approx(expected, abs=1e-12)


def test_regression_against_the_formulas() -> None:
    pearson, spearman = (
        plain_pearson(NUMBERS, SCORES),
        plain_pearson(ranks(NUMBERS), ranks(SCORES)),
    )
    assert compute_glue_metrics("stsb", NUMBERS, SCORES) == pytest.approx(
        {"pearson": pearson, "spearmanr": spearman, "combined_score": (pearson + spearman) / 2},
        abs=1e-12,
    )
    own = compute_glue_metrics(None, NUMBERS, SCORES, is_regression=True)
    assert own == pytest.approx({"mse": 0.25, "pearson": pearson}, abs=1e-12)


SCORE = st.integers(0, 50).map(lambda value: value / 10)


@given(st.lists(st.tuples(SCORE, SCORE), min_size=3, max_size=20))
def test_correlations_with_ties_against_the_formulas(pairs: list[tuple[float, float]]) -> None:
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    result = compute_glue_metrics("stsb", x, y, warn=False)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert result["pearson"] == result["spearmanr"] == 0
    else:
        assert result["pearson"] == pytest.approx(plain_pearson(x, y), abs=1e-9)
        assert result["spearmanr"] == pytest.approx(plain_pearson(ranks(x), ranks(y)), abs=1e-9)


@pytest.mark.parametrize("task", [*TASKS, None])
def test_one_answer_for_all_gives_a_number_and_a_warning(
    task: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        result = compute_glue_metrics(task, [1, 1, 1, 1], [0, 1, 1, 0])
    assert result
    assert all(math.isfinite(value) for value in result.values())
    assert "collapsed to one answer" in caplog.text
    caplog.clear()
    compute_glue_metrics(task, [0, 1, 1, 0], [0, 1, 1, 0])
    assert not caplog.text


@pytest.mark.parametrize(
    ("task", "labels", "guess", "said"),
    [
        (None, ("no", "yes"), [1, 1], "'yes'"),
        (None, None, [1, 1], "1:"),
        ("rte", None, [0, 0], "'entailment'"),
        ("stsb", None, [2.5, 2.5], "2.5:"),
    ],
)
def test_the_one_answer_is_named_as_the_class_is(
    task: str | None, labels: Any, guess: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    compute_glue_metrics(task, guess, [0, 1], labels=labels)
    assert f"Every prediction is {said}" in caplog.text


def test_f1_of_own_classes_is_of_the_second_of_two_and_the_mean_of_more() -> None:
    guess, truth = [0, 1, 1, 0], [0, 1, 0, 0]
    second, first = 2 / 3, 4 / 5
    assert compute_glue_metrics(None, guess, truth)["f1"] == pytest.approx(second)
    # A class that nothing is of, here or in the answers, is not counted.
    three = compute_glue_metrics(None, guess, truth, labels=("a", "b", "c"))
    assert three["f1"] == pytest.approx((first + second) / 2)
    seen = compute_glue_metrics(None, [0, 1, 2], [0, 1, 1])
    assert seen["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(UserError, match="as many of both"):
        compute_glue_metrics("rte", [1, 0], [1])
    with pytest.raises(UserError, match="at least one"):
        compute_glue_metrics("rte", [], [])
    with pytest.raises(UserError, match="1 of 2 predictions are not finite"):
        compute_glue_metrics("stsb", [float("nan"), 1.0], [1.0, 2.0])


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb", "mnli"])
def test_the_evaluate_interface_gives_the_same_numbers(task: str) -> None:
    guess, truth = (NUMBERS, SCORES) if task == "stsb" else (GUESS, TRUTH)
    metric = GlueMetric(task)
    assert isinstance(metric, evaluate.Metric)
    expected = compute_glue_metrics(task, guess, truth)
    expected.pop("combined_score", None)
    assert metric.compute(predictions=guess, references=truth) == pytest.approx(expected, abs=1e-7)
    for one, other in zip(guess, truth, strict=True):
        metric.add(prediction=one, reference=other)
    assert metric.compute() == pytest.approx(expected, abs=1e-7)
    assert set(expected) == set(TASKS[task].metrics)


def test_predictions_have_the_originals_form(tmp_path: Path) -> None:
    path = tmp_path / "test_results_rte.txt"
    write_predictions(path, np.array([1, 0]), ("entailment", "not_entailment"))
    assert path.read_text() == "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
    write_predictions(path, np.array([3.14159, 0.5]), None)
    assert path.read_text() == "index\tprediction\n0\t3.142\n1\t0.500\n"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_run_scores_by_evaluate_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    compute = GlueMetric._compute
    monkeypatch.setattr(GlueMetric, "_compute", lambda *a, **k: used.append(1) or compute(*a, **k))
    monkeypatch.setattr("evaluate.module.config.HF_METRICS_CACHE", str(tmp_path / "metrics"))
    assert compute_glue_metrics("mrpc", GUESS, TRUTH)["f1"] == pytest.approx(0.75)
    assert used
    assert not list(tmp_path.iterdir())
    GlueMetric("mrpc")  # as evaluate has it, which may gather the predictions of several processes
    assert (tmp_path / "metrics").is_dir()

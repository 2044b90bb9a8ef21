"""The metrics of GLUE: a metric of the ``evaluate`` package, by scikit-learn and scipy.

Keys are those of ``evaluate``'s own "glue" metric, whose code would have to be downloaded.
``combined_score`` is the original's: the mean, where a task has more than one.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from adalora.errors import UserError
from adalora.glue.tasks import Task, resolve_task

logger = logging.getLogger(__name__)
_CLASSES = ("accuracy", "f1")
_NUMBERS = ("mse", "pearson")
#: Metrics, and the loss, of which less is better.
LOWER_IS_BETTER = frozenset({"mse", "loss"})


def main_metric_of(task: Task | None, is_regression: bool) -> str:
    """The metric to look at: the task's first; accuracy or Pearson for the user's own data."""
    if task is not None:
        return task.metrics[0]
    return "pearson" if is_regression else "accuracy"


def metric_names(task: Task | None, is_regression: bool) -> tuple[str, ...]:
    """What ``compute_glue_metrics`` gives, in its order."""
    if task is None:
        return _NUMBERS if is_regression else _CLASSES
    return (*task.metrics, "combined_score") if len(task.metrics) > 1 else task.metrics


def compute_glue_metrics(
    task_name: str | None,
    predictions: Sequence[Any] | np.ndarray[Any, Any],
    references: Sequence[Any] | np.ndarray[Any, Any],
    *,
    is_regression: bool = False,
    labels: Sequence[str] | None = None,
    warn: bool = True,
) -> dict[str, float]:
    """Score predictions.

    Args:
        task_name: a GLUE task; None for the user's own data (accuracy and F1; mse and Pearson).
            That F1 is of the second class where there are two, and the mean over the classes
            (macro) where there are more.
        predictions: class indices [n], or numbers [n] for regression.
        references: likewise.
        is_regression: what the user's own data is; a task knows it by itself.
        labels: names of the classes; None where they have none, or the task knows them.
        warn: say when the predictions are all the same, so that a correlation is not defined.

    Returns:
        Metric -> value, and ``combined_score`` where a GLUE task has more than one metric. An
        undefined correlation is 0.

    Raises:
        UserError: if the lengths differ, there is nothing, or a prediction is not finite.
    """
    guess, truth = np.asarray(predictions), np.asarray(references)
    if guess.shape != truth.shape or guess.size == 0:
        raise UserError(
            f"{guess.shape} predictions for {truth.shape} references; as many of both are needed, "
            "and at least one."
        )
    if not np.isfinite(guess.astype(float)).all():
        bad = int((~np.isfinite(guess.astype(float))).sum())
        raise UserError(
            f"{bad} of {guess.size} predictions are not finite: training has diverged; lower the "
            "learning rate."
        )
    task = None if task_name is None else resolve_task(task_name)[0]
    names = labels if task is None else task.labels
    if warn and guess.size > 1 and (guess == guess[0]).all():
        logger.warning(
            "Every prediction is %s: the model has collapsed to one answer.",
            f"{guess[0]:g}" if names is None else f"{names[int(guess[0])]!r}",
        )
    metric = GlueMetric(
        task_name,
        is_regression=is_regression,
        classes=0 if names is None else len(names),
        keep_in_memory=True,
    )
    result: dict[str, float] = metric.compute(predictions=guess, references=truth)
    if task_name is not None and len(result) > 1:
        result["combined_score"] = float(np.mean(list(result.values())))
    return result


def _correlation(function: Any) -> Any:
    def compute(truth: np.ndarray[Any, Any], guess: np.ndarray[Any, Any]) -> float:
        if truth.size < 2:
            return 0.0
        value = float(function(guess, truth)[0])
        return value if np.isfinite(value) else 0.0

    return compute


def _f1(truth: np.ndarray[Any, Any], guess: np.ndarray[Any, Any], classes: int) -> float:
    several = max(classes, int(truth.max()) + 1, int(guess.max()) + 1) > 2
    average = "macro" if several else "binary"
    return float(f1_score(truth, guess, average=average, zero_division=0))


_METRICS: dict[str, Any] = {
    "accuracy": lambda truth, guess: float(accuracy_score(truth, guess)),
    "matthews_correlation": lambda truth, guess: float(matthews_corrcoef(truth, guess)),
    "pearson": _correlation(pearsonr),
    "spearmanr": _correlation(spearmanr),
    "mse": lambda truth, guess: float(np.mean((truth - guess) ** 2)),
}


class GlueMetric(evaluate.Metric):  # type: ignore[misc]
    """A metric as ``evaluate`` has them: ``GlueMetric("mrpc").compute(...)``, ``add`` and so on.

    Args:
        task_name: a GLUE task, as ``evaluate.load("glue", task_name)`` takes it; None for the
            user's own data (accuracy and F1; mse and Pearson).
        is_regression: what the user's own data is; a task knows it by itself.
        classes: how many it has; 0 for as many as are seen.
        **kwargs: of ``evaluate.Metric``; with ``keep_in_memory`` nothing is written to disk.
    """

    def __init__(
        self,
        task_name: str | None,
        *,
        is_regression: bool = False,
        classes: int = 0,
        **kwargs: Any,
    ) -> None:
        task = None if task_name is None else resolve_task(task_name)[0]
        self._is_regression = is_regression if task is None else task.is_regression
        self._metrics = metric_names(None, is_regression) if task is None else task.metrics
        self._classes = classes
        super().__init__(config_name=None if task is None else task.name, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kind = "float64" if self._is_regression else "int64"
        return evaluate.MetricInfo(
            description="The metrics of one GLUE task, computed without a download.",
            citation="",
            inputs_description="predictions and references: class indices, or numbers for stsb",
            features=datasets.Features(
                {"predictions": datasets.Value(kind), "references": datasets.Value(kind)}
            ),
        )

    def _build_data_dir(self) -> str:
        # The base class makes a folder in the user's cache even if nothing will be put there, and
        # a home may be read-only where runs are made.
        return "" if self.keep_in_memory else str(super()._build_data_dir())

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        guess, truth = np.asarray(predictions), np.asarray(references)
        with warnings.catch_warnings():
            # compute_glue_metrics says in one sentence what scipy would.
            warnings.simplefilter("ignore")
            return {
                name: _f1(truth, guess, self._classes)
                if name == "f1"
                else _METRICS[name](truth, guess)
                for name in self._metrics
            }

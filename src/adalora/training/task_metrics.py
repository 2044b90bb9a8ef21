"""The metrics of a task from the predictions of the Trainer."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    pass
from transformers import EvalPrediction

from adalora.glue.load import TaskData
from adalora.glue.metrics import compute_glue_metrics

__all__ = [
    "Answers",
    "TaskMetrics",
]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model said on one evaluation set: numbers [n], classes as indices, and the truth."""

    predictions: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def distinct(self, names: Sequence[str] | None) -> list[str]:
        """The different answers, by name where classes have one."""
        found = Counter(self.predictions.tolist())
        return [str(one) if names is None else names[int(one)] for one in found]


class TaskMetrics:
    """The metrics of the task from the Trainer's predictions; the last of these are remembered."""

    def __init__(self, data: TaskData) -> None:
        self._data = data
        self.answers: Answers | None = None

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metric -> value."""
        data = self._data
        guess = _decide(prediction.predictions, data.is_regression)
        self.answers = Answers(guess, np.asarray(prediction.label_ids).reshape(-1))
        return compute_glue_metrics(
            None if data.task is None else data.task.name,
            guess,
            prediction.label_ids,
            is_regression=data.is_regression,
        )


def _decide(logits: Any, is_regression: bool) -> np.ndarray[Any, Any]:
    """Scores [n] or class indices [n] from logits [n, labels]."""
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    return logits.reshape(-1) if is_regression else logits.argmax(axis=-1)

"""The columns of each task, and how tasks become one number: the two conventions.

The paper's table 1 has MNLI matched and mismatched, QQP accuracy and F1, CoLA's Matthews
correlation, the mean of Pearson's and Spearman's correlation for STS-B and accuracy for the rest.
Its average takes the mean of a task's two figures; later papers average MNLI matched and QQP
accuracy alone, and the two must never be mixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adalora.glue.tasks import MINI_PREFIX, TASKS, resolve_task

#: Convention -> what it does with a task of two figures.
CONVENTIONS = {
    "paper": "MNLI is the mean of matched and mismatched, QQP of accuracy and F1",
    "later": "MNLI is matched alone and QQP accuracy alone, as in later papers",
}
_ORDER = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb", "wnli", "ax")


@dataclass(frozen=True)
class Column:
    """One figure of a task."""

    #: as ``--task_name`` has it; the sweep's name for the user's own data, or their file's
    task: str
    title: str  #: heading of the column
    split: str  #: the evaluation set
    metrics: tuple[str, ...]  #: of the record; where there are several, their mean is shown
    bootstrap: str  #: the key of ``bootstrap.METRICS``
    #: percent that always answering the most frequent class gives; None where unknown
    majority: float | None = None

    def value(self, scores: Mapping[str, Any], epoch: str) -> float | None:
        """The figure in percent from a record's ``scores``.

        ``epoch`` is ``last`` or ``best``, or ``saved`` for the model that the run left.
        """
        found = (scores.get(self.split) or {}).get(epoch)
        if found is None or any(found.get(name) is None for name in self.metrics):
            return None
        return 100 * sum(float(found[name]) for name in self.metrics) / len(self.metrics)

    @property
    def unit(self) -> str:
        """What is measured, in words."""
        names = {
            "correlation": "mean of Pearson's and Spearman's correlation",
            "matthews_correlation": "Matthews correlation",
            "f1": "F1",
        }
        return names.get(self.bootstrap, self.bootstrap)


def task_title(task: str) -> str:
    """``sst2`` as GLUE writes it; the user's own name as it is."""
    short = task.removeprefix(MINI_PREFIX)
    if short not in TASKS:
        return task
    return task.removesuffix(short) + TASKS[short].folder


def columns_of(
    task: str, scores: Mapping[str, Any], *, own_data: bool = False
) -> tuple[Column, ...]:
    """The columns of a task, the first being the one that later papers use.

    Args:
        scores: those of a record, which have the metric of the user's own data and the baselines.
        own_data: whether it is the user's own, whatever its name.
    """
    title = task_title(task)
    short = "" if own_data else task.removeprefix(MINI_PREFIX)

    def column(title: str, split: str, metrics: tuple[str, ...], bootstrap: str = "") -> Column:
        found = scores.get(split, {})
        known = found.get("main") in metrics and found.get("majority") is not None
        majority = 100 * float(found["majority"]) if known else None
        return Column(task, title, split, metrics, bootstrap or metrics[0], majority)

    if short == "mnli":
        return (
            column(f"{title}-m", "validation_matched", ("accuracy",)),
            column(f"{title}-mm", "validation_mismatched", ("accuracy",)),
        )
    if short == "qqp":
        return (
            column(f"{title} acc", "validation", ("accuracy",)),
            column(f"{title} F1", "validation", ("f1",)),
        )
    if short == "stsb":
        return (column(title, "validation", ("pearson", "spearmanr"), "correlation"),)
    if short in TASKS:
        return (column(title, "validation", (resolve_task(task)[0].metrics[0],)),)
    split = next(iter(scores), "validation")
    return (column(title, split, (scores.get(split, {}).get("main", "accuracy"),)),)


def task_order(task: str) -> tuple[int, str]:
    """Sorts tasks as the paper's table does, other data after them."""
    short = task.removeprefix(MINI_PREFIX)
    return (_ORDER.index(short) if short in _ORDER else len(_ORDER), task)


def task_score(figures: Sequence[float], convention: str) -> float:
    """One number for a task, from the figures of its columns in their order."""
    return figures[0] if convention == "later" else sum(figures) / len(figures)

"""GLUE and data like it: the task table, reading, metrics, and predictions on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adalora.glue.load import DataSource, TaskData, load_data
    from adalora.glue.metrics import GlueMetric, compute_glue_metrics, main_metric_of
    from adalora.glue.predictions import write_predictions
    from adalora.glue.tasks import TASKS, Task, resolve_task

_HOMES = {
    "DataSource": "load",
    "GlueMetric": "metrics",
    "TASKS": "tasks",
    "Task": "tasks",
    "TaskData": "load",
    "compute_glue_metrics": "metrics",
    "load_data": "load",
    "main_metric_of": "metrics",
    "resolve_task": "tasks",
    "write_predictions": "predictions",
}

__all__ = [
    "TASKS",
    "DataSource",
    "GlueMetric",
    "Task",
    "TaskData",
    "compute_glue_metrics",
    "load_data",
    "main_metric_of",
    "resolve_task",
    "write_predictions",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the task table must not cost the import of datasets and scipy."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"adalora.glue.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

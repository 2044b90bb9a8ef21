"""GLUE and data like it: the task table, reading, metrics, and predictions on disk.

Only the task table is imported here, as reading and metrics need datasets, scipy and scikit-learn.
"""

from __future__ import annotations

from adalora.glue.tasks import TASKS, Task, resolve_task

__all__ = ["TASKS", "Task", "resolve_task"]

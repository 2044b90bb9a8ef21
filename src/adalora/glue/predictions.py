"""Predictions on disk in the original's form: a header, then index and class name (or number)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["result_name", "write_predictions"]


def result_name(task_name: str | None, split: str) -> str:
    """What the original calls the results of a split: the task, and mnli-mm for mismatched sets."""
    task = task_name or "custom"
    if split.endswith("_mismatched"):
        return f"{task}-mm"
    return split if split == "ax" else task


def write_predictions(
    path: Path,
    predictions: Sequence[Any] | np.ndarray[Any, Any],
    labels: Sequence[str] | None,
) -> None:
    """Write ``path`` whole or not at all.

    Args:
        path: replaced if it exists.
        predictions: class indices [n], or numbers [n] where ``labels`` is None.
        labels: names of the classes.
    """
    lines = ["index\tprediction"]
    for index, value in enumerate(predictions):
        answer = f"{float(value):3.3f}" if labels is None else labels[int(value)]
        lines.append(f"{index}\t{answer}")
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)

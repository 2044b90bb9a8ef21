"""Predictions on disk in the original's form: a header, then index and class name (or number)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adalora.storage.atomic import atomic_write


def result_name(task_name: str | None, split: str) -> str:
    """What the original calls the results of a split: the task, and mnli-mm for mismatched sets."""
    task = task_name or "custom"
    if split.endswith("_mismatched"):
        return f"{task}-mm"
    return split if split == "ax" else task


def write_predictions(
    path: Path, predictions: Sequence[Any] | np.ndarray[Any, Any], labels: Sequence[str] | None
) -> None:
    """Write ``path`` whole or not at all, a line for each prediction whatever its label holds.

    Args:
        path: replaced if it exists.
        predictions: class indices [n], or numbers [n] where ``labels`` is None.
        labels: names of the classes.
    """
    lines = ["index\tprediction"]
    for index, value in enumerate(predictions):
        answer = f"{float(value):3.3f}" if labels is None else _in_a_cell(labels[int(value)])
        lines.append(f"{index}\t{answer}")
    _write_lines(path, lines)


def write_eval_predictions(
    path: Path,
    predictions: np.ndarray[Any, Any],
    references: np.ndarray[Any, Any],
    labels: Sequence[str] | None,
) -> None:
    """Write ``path`` with the truth and the answer side by side, whole or not at all.

    Args:
        path: replaced if it exists.
        predictions: class indices [n], or numbers [n] where ``labels`` is None, written in full.
        references: likewise.
        labels: names of the classes.
    """

    def word(value: Any) -> str:
        return repr(float(value)) if labels is None else _in_a_cell(labels[int(value)])

    pairs = zip(references, predictions, strict=True)
    lines = [f"{index}\t{word(truth)}\t{word(guess)}" for index, (truth, guess) in enumerate(pairs)]
    _write_lines(path, ["index\tlabel\tprediction", *lines])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    text = "\n".join(lines) + "\n"
    with atomic_write(path) as new:
        new.write_bytes(text.encode("utf-8", "backslashreplace"))


def _in_a_cell(label: str) -> str:
    """Without what would end the cell or the line; U+2028 and its like end neither."""
    return label.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")

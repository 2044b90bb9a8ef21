"""Test predictions in the original's form: a header, then index and class name (or number)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["write_predictions"]


def write_predictions(
    path: Path,
    predictions: Sequence[Any] | np.ndarray[Any, Any],
    labels: Sequence[str] | None,
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
    temporary = path.with_name(path.name + ".partial")
    text = "\n".join(lines) + "\n"
    temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(temporary, path)


def _in_a_cell(label: str) -> str:
    """Without what would end the cell or the line; U+2028 and its like end neither."""
    return label.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")

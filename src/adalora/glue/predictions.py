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

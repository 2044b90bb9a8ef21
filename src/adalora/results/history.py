"""``history.json`` of a run: what was logged, how the budget was spent, what it was worth."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adalora.errors import UserError

__all__ = ["Allocation", "History", "Point", "read_history"]

#: A step and what was measured at it.
Point = tuple[int, float]


@dataclass(frozen=True)
class Allocation:
    """The ranks after one pruning.

    Attributes:
        step: optimizer step, from 0.
        budget: triplets allowed in the whole model.
        threshold: score at or below which triplets were pruned; None where none was.
        ranks: triplets kept per matrix.
    """

    step: int
    budget: int
    threshold: float | None
    ranks: Mapping[str, int]


@dataclass(frozen=True)
class History:
    """The course of a run; each part may be empty.

    Attributes:
        log_history: the Trainer's records.
        allocations: in the order of their steps.
        importance: scores of each matrix's triplets at the end, in descending order.
    """

    log_history: Sequence[Mapping[str, Any]] = ()
    allocations: Sequence[Allocation] = ()
    importance: Mapping[str, Sequence[float]] | None = None

    def series(self, key: str) -> list[Point]:
        """The finite values logged as ``key``, one for each step.

        Of several at one step the first counts: after training, a task's other evaluation sets are
        logged under the same names.
        """
        points: dict[int, float] = {}
        for entry in self.log_history:
            value = entry.get(key)
            if isinstance(value, int | float) and math.isfinite(value) and "step" in entry:
                points.setdefault(int(entry["step"]), float(value))
        return sorted(points.items())


def read_history(path: Path) -> History:
    """The history in ``path``; an empty one where the file is absent (an older or a failed run).

    Raises:
        UserError: if the file is damaged.
    """
    if not path.is_file():
        return History()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return History(
            log_history=[dict(entry) for entry in content.get("log_history") or ()],
            allocations=[
                Allocation(
                    step=int(entry["step"]),
                    budget=int(entry["budget"]),
                    threshold=None if entry["threshold"] is None else float(entry["threshold"]),
                    ranks={str(name): int(rank) for name, rank in entry["ranks"].items()},
                )
                for entry in content.get("allocations") or ()
            ],
            importance={
                # A score that is not finite is null in the file.
                str(name): [float(score) for score in scores if score is not None]
                for name, scores in (content.get("importance") or {}).items()
            },
        )
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"{path} is not the history of a run ({type(error).__name__}: {error}); it is written "
            "by run_glue.py at the end of training."
        ) from error

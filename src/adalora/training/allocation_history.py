"""How the budget was spent over a run: a bounded record of its allocations.

Nothing here waits for the device until the record is read or written to a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_ALLOCATIONS = 200


class _Allocation(NamedTuple):
    step: int
    budget: int
    threshold: Tensor | None
    ranks: Tensor


class AllocationHistory:
    """The first allocation in each of 199 equal parts of a run, and the last of all.

    A run has thousands of allocations, and in its final phase one at every step.

    Args:
        total_steps: optimizer steps of the run.
    """

    def __init__(self, total_steps: int) -> None:
        self._spacing = max(math.ceil(total_steps / (MOST_ALLOCATIONS - 1)), 1)
        self._matrices: tuple[str, ...] = ()
        self._owners: Tensor | None = None
        self._kept: list[_Allocation] = []
        self._last: _Allocation | None = None

    def note(
        self, step: int, budget: int, threshold: Tensor | None, survivors: Mapping[str, Tensor]
    ) -> None:
        """Take in the allocation that was just made.

        Args:
            step: its optimizer step, from 0.
            budget: triplets allowed in the whole model.
            threshold: score at or below which triplets were pruned, []; None where none was.
            survivors: ``<module>.lora_E`` -> which triplets were kept, bool [r].
        """
        self._matrices = tuple(survivors)
        self._take(_Allocation(step, budget, threshold, self._counts(survivors)))

    def _counts(self, survivors: Mapping[str, Tensor]) -> Tensor:
        """Triplets kept per matrix, int32 [matrices]; one sum for all, as it is done often."""
        flat = torch.cat(list(survivors.values()))
        if self._owners is None or self._owners.device != flat.device:
            owners = [n for n, kept in enumerate(survivors.values()) for _ in range(len(kept))]
            self._owners = torch.tensor(owners).to(flat.device)
        counts = torch.zeros(len(survivors), dtype=torch.int32, device=flat.device)
        return counts.index_add_(0, self._owners, flat.to(torch.int32))

    def _take(self, one: _Allocation) -> None:
        spacing = self._spacing
        if not self._kept or one.step // spacing > self._kept[-1].step // spacing:
            self._kept.append(one)
        self._last = one

    def _all(self) -> list[_Allocation]:
        if self._last is None or self._kept[-1] is self._last:
            return self._kept
        return [*self._kept, self._last]

    def entries(self) -> list[dict[str, Any]]:
        """The record: step, budget, threshold and ranks (module path -> triplets kept) of each."""
        modules = [name.removesuffix(".lora_E") for name in self._matrices]
        return [
            {
                "step": one.step,
                "budget": one.budget,
                "threshold": None if one.threshold is None else float(one.threshold),
                "ranks": dict(zip(modules, one.ranks.tolist(), strict=True)),
            }
            for one in self._all()
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; empty before the first allocation."""
        found = self._all()
        if not found:
            return {}
        none = torch.zeros(())
        thresholds = [none if one.threshold is None else one.threshold for one in found]
        return {
            "matrices": list(self._matrices),
            "steps": [one.step for one in found],
            "budgets": [one.budget for one in found],
            "pruned": [one.threshold is not None for one in found],
            "thresholds": torch.stack([threshold.float().cpu() for threshold in thresholds]),
            "ranks": torch.stack([one.ranks.cpu() for one in found]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, or raise a KeyError if something is missing from it."""
        self._kept, self._last = [], None
        if not state:
            return
        self._matrices = tuple(state["matrices"])
        for index, pruned in enumerate(state["pruned"]):
            threshold = state["thresholds"][index] if pruned else None
            step, budget = state["steps"][index], state["budgets"][index]
            self._take(_Allocation(step, budget, threshold, state["ranks"][index]))

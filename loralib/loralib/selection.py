"""Which triplets a budget buys: the best ones (pruning), or more in the best matrices (growth).

Both put all triplets in an order of which the allocator keeps the first b(t). Everything is done by
sorting on the device; nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ALLOCATIONS = ("prune", "grow")


class Order(NamedTuple):
    """Triplets in the order in which a budget buys them, int64 [triplets], and their scores."""

    indices: Tensor
    scores: Tensor


class Pruning:
    """AdaLoRA (arXiv 2303.10512) eq. 5-8: the triplets of the highest score, wherever they are.

    Between two prunings all triplets are free, so that one can come back.
    """

    holds_between = False

    def first(self) -> None:
        """Nothing is masked at the start."""

    def reserved(self, survivors: Tensor) -> None:
        """Nothing is reserved: the rest is masked to zero."""

    def order(self, scores: Tensor, survivors: Tensor) -> Order:
        """Best first; of equal scores the earlier."""
        ordered = torch.sort(scores, descending=True, stable=True)
        return Order(ordered.indices, ordered.values)


class Growth:
    """IncreLoRA (arXiv 2308.12043): ranks grow from one, in the matrices that matter most.

    A matrix's triplets are taken in their order, so those of rank k are its first k, and one that
    was taken stays. When the budget rises by h, the h matrices of the highest score get one more
    each; if there are fewer than h with room, the best get a second one, and so on. A matrix's
    score is the mean over the triplets that it has.

    Departures from IncreLoRA: its score of a matrix is taken from the gradient of the whole product
    P Λ Q, which no other part of a step needs and which here is never formed; shapes are those of
    the largest rank from the start, so that optimizer, graphs and checkpoints stay as they are; the
    scale divides by that rank instead of the present one; every matrix gets one triplet at a time;
    and the learning rate of new triplets is not warmed up anew.

    Args:
        ranks: the largest rank of each matrix.
        device: where scores are.
    """

    holds_between = True

    def __init__(self, ranks: Sequence[int], device: torch.device) -> None:
        total, longest = sum(ranks), max(ranks)
        # Matrices as rows of one length, by the number of their triplets; ``total`` where there
        # is none. Gathering and summing rows is deterministic everywhere, adding by index is not.
        rows, start = [], 0
        for rank in ranks:
            rows.append([*range(start, start + rank), *[total] * (longest - rank)])
            start += rank
        self._rows = torch.tensor(rows, device=device)
        sizes, numbers = torch.tensor(ranks, device=device), torch.arange(len(ranks), device=device)
        self._matrix = torch.repeat_interleave(numbers, sizes, output_size=total)
        self._position = torch.cat([torch.arange(rank, device=device) for rank in ranks])

    def first(self) -> Tensor:
        """The survivors at the start, bool [triplets]: the first triplet of every matrix."""
        return self._position == 0

    def reserved(self, survivors: Tensor) -> Tensor:
        """The next triplet of every matrix with room, bool [triplets]."""
        return self._turn(survivors) == 0

    def order(self, scores: Tensor, survivors: Tensor) -> Order:
        """Survivors first, then one more of each matrix, the best matrices first, and so on."""
        own = self._rowwise(torch.where(survivors, scores, 0)).sum(dim=1)
        importance = own / self._ranks(survivors)
        best = torch.sort(importance[self._matrix], descending=True, stable=True)
        turns = self._turn(survivors).clamp(min=-1)[best.indices]
        first = torch.sort(turns, stable=True).indices
        return Order(best.indices[first], best.values[first])

    def _turn(self, survivors: Tensor) -> Tensor:
        """How many of its matrix would be taken before a triplet; below 0 for the survivors."""
        return self._position - self._ranks(survivors)[self._matrix]

    def _ranks(self, survivors: Tensor) -> Tensor:
        return self._rowwise(survivors.long()).sum(dim=1)

    def _rowwise(self, values: Tensor) -> Tensor:
        return F.pad(values, (0, 1))[self._rows]

"""Which triplets a budget buys: the best, or more in the best matrices, or as a control says.

Every rule puts all triplets in an order of which the allocator keeps the first b(t). Everything is
done by sorting on the device; nothing waits for the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

ALLOCATIONS = ("prune", "grow", "exchange", "uniform", "random", "frozen")


class Order(NamedTuple):
    """Triplets in the order in which a budget buys them, int64 [triplets], and their scores."""

    indices: Tensor
    scores: Tensor


class Pruning:
    """AdaLoRA (arXiv 2303.10512) eq. 5-8: the triplets of the highest score, wherever they are.

    Between two prunings all triplets are free, so that one can come back.
    """

    holds_between = False

    def first(self) -> Tensor | None:
        """The survivors at the start, bool [triplets]; None where nothing is masked."""
        return None

    def reserved(self, survivors: Tensor) -> Tensor | None:
        """What waits with a value too small to move an output; None: the rest is masked to zero."""
        return None

    def judged(self, scores: Tensor) -> Tensor:
        """The scores that are ordered, [triplets]."""
        return scores

    def order(self, scores: Tensor, survivors: Tensor) -> Order:
        """Best first; of equal scores the earlier."""
        ordered = torch.sort(scores, descending=True, stable=True)
        return Order(ordered.indices, ordered.values)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond scores and survivors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from ``state``."""


class Fixed(Pruning):
    """A control: one order for the whole run, so that what was pruned never returns.

    That of the first allocation (``frozen``), or one drawn by lot before the first step
    (``random``), which no gradient has touched.

    Args:
        scores: the order, [triplets]; None for that of the first allocation.
    """

    def __init__(self, scores: Tensor | None = None) -> None:
        self._scores = scores

    @classmethod
    def drawn(cls, triplets: int, device: torch.device) -> Self:
        """By lot, from the seed of torch's generator, of which no number is taken."""
        generator = torch.Generator().manual_seed(torch.initial_seed())
        return cls(torch.rand(triplets, generator=generator).to(device))

    def judged(self, scores: Tensor) -> Tensor:
        """The scores of the order, whatever ``scores`` are now."""
        if self._scores is None:
            self._scores = scores
        return self._scores

    def state_dict(self) -> dict[str, Tensor]:
        """The order, once there is one."""
        return {} if self._scores is None else {"scores": self._scores}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the order over."""
        self._scores = state.get("scores")


class _ByMatrix(Pruning):
    """Triplets as rows of one length, by matrix.

    Args:
        ranks: triplets of each matrix, masked ones included.
        device: where scores are.
    """

    def __init__(self, ranks: Sequence[int], device: torch.device) -> None:
        total, longest = sum(ranks), max(ranks)
        # ``total`` where there is no triplet. Gathering and summing rows is deterministic
        # everywhere, adding by index is not.
        rows, start = [], 0
        for rank in ranks:
            rows.append([*range(start, start + rank), *[total] * (longest - rank)])
            start += rank
        self._rows = torch.tensor(rows, device=device)
        self._sizes = torch.tensor(ranks, device=device)
        numbers = torch.arange(len(ranks), device=device)
        self._matrix = torch.repeat_interleave(numbers, self._sizes, output_size=total)
        self._position = torch.cat([torch.arange(rank, device=device) for rank in ranks])

    def _rowwise(self, values: Tensor, missing: float = 0) -> Tensor:
        """[triplets] -> [matrices, longest], ``missing`` where a matrix has no triplet."""
        return F.pad(values, (0, 1), value=missing)[self._rows]

    def _ranks(self, survivors: Tensor) -> Tensor:
        return self._rowwise(survivors.long()).sum(dim=1)

    def _in_turns(self, scores: Tensor, turns: Tensor) -> Order:
        """By ``turns``, the smallest first; within a turn best first."""
        best = torch.sort(scores, descending=True, stable=True)
        first = torch.sort(turns[best.indices], stable=True).indices
        return Order(best.indices[first], best.values[first])


class Uniform(_ByMatrix):
    """A control: every matrix keeps as many, its own best ones.

    Where the budget is no multiple of the matrices, those whose next triplet has the highest score
    keep one more.
    """

    def order(self, scores: Tensor, survivors: Tensor) -> Order:
        """Every matrix's best, then every matrix's second best, and so on."""
        own = self._rowwise(scores, missing=-torch.inf).argsort(dim=1, descending=True, stable=True)
        return self._in_turns(scores, own.argsort(dim=1)[self._matrix, self._position])


class Exchange(_ByMatrix):
    """Prune and grow at once, in the manner of ElaLoRA (arXiv 2504.00254), at one budget.

    Every matrix's worst triplet goes into a pool. The matrices that own the worst of the pool give
    theirs up, and as many that own the best of it get one more; a matrix keeps one at least.

    Departures from ElaLoRA: an eighth of the matrices, rounded down and at least one, is exchanged
    every time, where its number falls over the run; scores are eq. 9's of AdaLoRA; and what is
    said of ``Growth`` about shapes, scale and the learning rate of new triplets.

    Args:
        ranks: the largest rank of each matrix.
        device: where scores are.
        budget: triplets over all matrices, at every step.
    """

    holds_between = True

    def __init__(self, ranks: Sequence[int], device: torch.device, budget: int) -> None:
        super().__init__(ranks, device)
        self._budget = budget
        self._exchanged = min(max(len(ranks) // 8, 1), len(ranks) // 2)

    def first(self) -> Tensor:
        """The survivors at the start: the first of every matrix, then the second, and so on."""
        chosen = torch.zeros_like(self._position, dtype=torch.bool)
        chosen[torch.sort(self._position, stable=True).indices[: self._budget]] = True
        return chosen

    def reserved(self, survivors: Tensor) -> Tensor:
        """The first masked triplet of every matrix with room, bool [triplets]."""
        masked = self._rowwise(~survivors).cumsum(dim=1)[self._matrix, self._position]
        return ~survivors & (masked == 1)

    def order(self, scores: Tensor, survivors: Tensor) -> Order:
        """What stays, the new ones, and what is given up; the budget cuts where as many came."""
        own = self._rowwise(torch.where(survivors, scores, torch.inf), missing=torch.inf)
        worst, which = own.min(dim=1)
        place = worst.argsort(stable=True).argsort()
        ranks, count = self._ranks(survivors), len(worst)
        gives = (place < self._exchanged) & (ranks > 1)
        gets = (place >= count - self._exchanged) & (ranks < self._sizes)
        given = gives[self._matrix] & (which[self._matrix] == self._position)
        new = gets[self._matrix] & self.reserved(survivors)
        turns = torch.full_like(self._position, 3)
        turns = turns.masked_fill(survivors, 0).masked_fill(new, 1).masked_fill(given, 2)
        # A new triplet has no score yet and is ordered by that which its matrix has in the pool.
        return self._in_turns(torch.where(new, worst[self._matrix], scores), turns)


class Growth(_ByMatrix):
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
        return self._in_turns(importance[self._matrix], self._turn(survivors).clamp(min=-1))

    def _turn(self, survivors: Tensor) -> Tensor:
        """How many of its matrix would be taken before a triplet; below 0 for the survivors."""
        return self._position - self._ranks(survivors)[self._matrix]


def make_rule(
    allocation: str, ranks: Sequence[int], device: torch.device, *, budget: int
) -> Pruning:
    """The rule of an allocation, by its name in ``ALLOCATIONS``; ``budget`` at the end."""
    if allocation == "exchange":
        return Exchange(ranks, device, budget)
    if allocation == "random":
        return Fixed.drawn(sum(ranks), device)
    if allocation in ("uniform", "grow"):
        return (Uniform if allocation == "uniform" else Growth)(ranks, device)
    return Fixed() if allocation == "frozen" else Pruning()

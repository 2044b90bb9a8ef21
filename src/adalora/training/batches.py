"""How the examples of one step are divided among the processes, so that many train as one.

With a batch of ``b`` in each of ``N`` processes a step takes the next ``N * b`` examples of one
order, the first process the first ``b``. The last step of an epoch may be short of that. The data
loader then fills up with examples from the epoch's beginning, because every process must take part;
they are left out here, and the processes weighted by the examples of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_pt_utils import LengthGroupedSampler


@dataclass(frozen=True)
class Share:
    """This process's part of a step that is short.

    ``rows`` at the front of its batch are its own (0 where none are), of ``total`` examples.
    """

    rows: int
    total: int


def share_of(batch_size: int, *, total: int, process: int, processes: int) -> Share:
    """The share of one of ``processes`` in a step of ``total`` examples.

    ``batch_size`` is the rows in the batch of each, fillers included, and ``total`` at most that
    of all of them.
    """
    return Share(min(max(total - process * batch_size, 0), batch_size), total)


def first_rows(batch: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """``batch`` cut to its first rows, one at least: every process must compute something."""
    return {
        name: value[: max(rows, 1)] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }


class GroupedByLength(LengthGroupedSampler):  # type: ignore[misc]
    """Examples of like length together, in an order that depends on seed and epoch alone.

    The installed sampler draws from the process's own generator, which dropout moves on
    differently in each: from the second epoch on the processes would each follow another order.

    Args:
        batch_size: of all processes together.
        seed: of the order.
        **kwargs: those of ``LengthGroupedSampler``.
    """

    def __init__(self, batch_size: int, *, seed: int, **kwargs: Any) -> None:
        super().__init__(batch_size, **kwargs)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: Iterator[int] = super().__iter__()
        return order

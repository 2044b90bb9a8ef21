"""Tensors of one shape taken together: as many operations for many layers as for few."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


class Stacks:
    """A fixed list of tensors, grouped by shape, dtype and device.

    Args:
        tensors: the list; later calls take lists of the same length and shapes.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        members: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = defaultdict(list)
        for index, tensor in enumerate(tensors):
            members[tensor.shape, tensor.dtype, tensor.device].append(index)
        self.members = list(members.values())
        self.count = len(tensors)

    def stack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One tensor [members, ...] per group."""
        return [torch.stack([tensors[i] for i in group]) for group in self.members]

    def views(self, stacked: Sequence[Tensor]) -> list[Tensor]:
        """The groups' members in the order of the list, as views."""
        result: dict[int, Tensor] = {}
        for group, whole in zip(self.members, stacked, strict=True):
            result.update(zip(group, whole.unbind(), strict=True))
        return [result[index] for index in range(self.count)]

    def order(self, sizes: Sequence[int]) -> Tensor:
        """Where each entry of the list's concatenation stands in that of the groups, int64.

        Args:
            sizes: entries per tensor of the list.
        """
        starts, position = {}, 0
        for group in self.members:
            for index in group:
                starts[index] = position
                position += sizes[index]
        return torch.cat(
            [torch.arange(starts[i], starts[i] + size) for i, size in enumerate(sizes)]
        )

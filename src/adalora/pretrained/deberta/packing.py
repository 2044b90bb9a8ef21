"""The real tokens of a batch, one after the other, and which of them attend to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Group", "Packing"]

#: Sequences share a group while at least this share of its positions is real.
FULLNESS = 0.8
#: Most scores of one head in a group: a group's score tensor should stay in the processor's cache.
GROUP_SCORES = 2**17
#: Lengths of recurring groups are multiples of it.
SPAN_STEP = 8


@dataclass(frozen=True)
class Group:
    """Sequences of similar length that are attended to together, padded to the longest of them.

    Attributes:
        count: sequences in the group.
        length: positions per sequence.
        rows: int64 [count · length], the packed token at each position (0 where there is none);
            None if they are the packed tokens ``start`` to ``start + count · length``.
        start: see ``rows``.
        real: int64, places in ``rows`` that hold a token; None if all do.
        absent: int64, the other places; None if there are none.
    """

    count: int
    length: int
    start: int = 0
    rows: Tensor | None = None
    real: Tensor | None = None
    absent: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many of its positions hold a token."""
        return self.count * self.length - (0 if self.absent is None else len(self.absent))

    def gather(self, packed: Tensor) -> Tensor:
        """[rows, ...] -> [count · length, ...]; places without a token hold another's values."""
        if self.rows is None:
            return packed.narrow(0, self.start, self.count * self.length)
        return packed.index_select(0, self.rows)

    def scatter(self, places: Tensor, packed: Tensor) -> None:
        """Write [count · length, ...] to the group's tokens of ``packed``, in place."""
        if self.rows is None:
            packed.narrow(0, self.start, self.count * self.length).copy_(places)
        elif self.real is None:
            packed.index_copy_(0, self.rows, places)
        else:
            packed.index_copy_(0, self.rows[self.real], places.index_select(0, self.real))


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch are.

    Attributes:
        batch: sequences in the batch.
        length: positions per sequence in the padded batch.
        rows: int64 [rows], the flat position that each packed row is taken from: the real tokens
            in their order, then the first of them again for each row of filling.
        filling: rows that hold no token. Nothing reads their states, and no gradient reaches them.
        longest: no group has more positions per sequence.
        groups: all sequences, each in one group.
    """

    batch: int
    length: int
    rows: Tensor
    filling: int
    longest: int
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, mask: Tensor, *, recurring: bool = False) -> Self | None:
        """The packing of an attention mask [batch, length], nonzero at tokens.

        None if a sequence does not begin with a token (padding on the left, or nothing but
        padding): classifiers read the state at the first position, whatever stands there.

        Args:
            mask: the attention mask.
            recurring: make ``rows``, ``longest`` and the groups' lengths a little larger, so that
                they are of few sizes, which come again in other batches.
        """
        real = mask.bool()
        if real.numel() == 0 or not bool(real[:, 0].all()):
            return None
        batch, length = real.shape
        counts = real.sum(dim=1).tolist()
        spans = (length - real.flip(1).int().argmax(dim=1)).tolist()
        tokens = real.flatten().nonzero().squeeze(1)
        longest, filling = max(spans), 0
        if recurring:
            spans = [_multiple(span, SPAN_STEP) for span in spans]
            real = F.pad(real, (0, max(max(spans) - length, 0)))
            longest = _recurring(longest)
            filling = _recurring(len(tokens)) - len(tokens)
        # Place of each position's token among the packed ones.
        places = real.flatten().cumsum(0).sub_(1).view_as(real)
        groups = []
        for members in _by_length(spans):
            widest = max(spans[index] for index in members)
            groups.append(_group(members, widest, counts, real, places))
        rows = torch.cat([tokens, tokens[:1].expand(filling)])
        return cls(batch, length, rows, filling, longest, tuple(groups))

    @property
    def tokens(self) -> Tensor:
        """int64 [tokens], the flat positions of the real tokens."""
        return self.rows[: len(self.rows) - self.filling]

    def pack(self, padded: Tensor) -> Tensor:
        """[batch, length, ...] -> [rows, ...]."""
        flat = padded.flatten(0, 1)
        whole = self.filling == 0 and len(self.rows) == len(flat)
        return flat if whole else flat.index_select(0, self.rows)

    def pad(self, packed: Tensor) -> Tensor:
        """[rows, ...] -> [batch, length, ...], zeros where there is no token."""
        sizes = (self.batch, self.length)
        tokens = self.tokens
        packed = packed[: len(tokens)]
        if len(tokens) == self.batch * self.length:
            return packed.unflatten(0, sizes)
        flat = packed.new_zeros(self.batch * self.length, *packed.shape[1:])
        return flat.index_copy(0, tokens, packed).unflatten(0, sizes)


def _multiple(size: int, step: int) -> int:
    """The first multiple of ``step`` that is not below ``size``."""
    return -(-size // step) * step


def _recurring(size: int) -> int:
    """``size`` or up to a sixteenth more: a multiple of 16, one of sixteen sizes per doubling."""
    return _multiple(size, max(16, 2 ** (size - 1).bit_length() // 32))


def _by_length(spans: Sequence[int]) -> list[list[int]]:
    """Indices of sequences in groups of similar length, the order of a batch kept in a group."""
    groups: list[list[int]] = []
    longest = total = 0
    for index in sorted(range(len(spans)), key=lambda i: -spans[i]):
        span = spans[index]
        members = len(groups[-1]) + 1 if groups else 1
        fits = groups and (
            total + span >= FULLNESS * members * longest
            and members * longest * longest <= GROUP_SCORES
        )
        if not fits:
            groups.append([])
            longest, total = span, 0
        groups[-1].append(index)
        total += span
    return [sorted(group) for group in groups]


def _group(
    members: list[int],
    length: int,
    counts: list[int],
    real: Tensor,
    places: Tensor,
) -> Group:
    # Sequences with no gaps that stand side by side in the packed tokens need no index.
    side_by_side = members == list(range(members[0], members[-1] + 1))
    if side_by_side and all(counts[index] == length for index in members):
        return Group(len(members), length, start=int(places[members[0], 0]))
    which = torch.tensor(members, device=real.device)
    present = real[which, :length].flatten()
    rows = places[which, :length].flatten().masked_fill_(~present, 0)
    if all(counts[index] == length for index in members):
        return Group(len(members), length, rows=rows)
    return Group(
        len(members),
        length,
        rows=rows,
        real=present.nonzero().squeeze(1),
        absent=(~present).nonzero().squeeze(1),
    )

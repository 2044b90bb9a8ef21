"""The real tokens of a batch, one after the other, and which of them attend to one another.

DeBERTa's, and those of every other encoder that computes no padding (``pretrained/unpadded.py``).

A packing is worked out on the host, where lengths can be read without waiting for a device: the
collator does it (``PackedMask``), and all its index tensors travel with the batch in one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Sequences share a group while at least this share of its positions is real.
FULLNESS = 0.8
#: Most scores of one head in a group: a group's score tensor should stay in the processor's cache.
GROUP_SCORES = 2**17
#: Lengths of recurring groups are multiples of it.
SPAN_STEP = 8


def is_hooked(module: nn.Module) -> bool:
    """Whether something watches or changes what goes into or comes out of ``module``."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def can_embed_packed(encoder: Any) -> bool:
    """Whether only the table of words of ``encoder`` is hooked, if anything of its embeddings is.

    A hook expects [batch, length, hidden]; ``Packing.words`` sees to it for the table.
    """
    table = encoder.get_input_embeddings()
    return not any(is_hooked(part) for part in encoder.embeddings.modules() if part is not table)


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
        recurring: see ``of``.
        starts: int64 [batch + 1], the packed row that each sequence starts at, and their end;
            None if a sequence has gaps, whose distances are not those of its packed rows.
    """

    batch: int
    length: int
    rows: Tensor
    filling: int
    longest: int
    groups: tuple[Group, ...]
    recurring: bool = False
    starts: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor, *, recurring: bool = False) -> Self | None:
        """The packing of an attention mask [batch, length], nonzero at tokens.

        None if a sequence does not begin with a token (padding on the left, or nothing but
        padding): classifiers read the state at the first position, whatever stands there.

        Args:
            mask: the attention mask. One on an accelerator is copied to the host, which waits.
            recurring: make ``rows``, ``longest`` and the groups' lengths a little larger, so that
                they are of few sizes, which come again in other batches.
        """
        device, real = mask.device, mask.detach().cpu().bool()
        if real.numel() == 0 or not bool(real[:, 0].all()):
            return None
        batch, length = real.shape
        counts = real.sum(dim=1).tolist()
        spans = (length - real.flip(1).int().argmax(dim=1)).tolist()
        starts = F.pad(real.sum(dim=1).cumsum(0), (1, 0)) if counts == spans else None
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
        packing = cls(batch, length, rows, filling, longest, tuple(groups), recurring, starts)
        return packing if device.type == "cpu" else packing.with_index(packing.index().to(device))

    @classmethod
    def for_batch(cls, mask: Tensor | None, inputs: Tensor, dtype: torch.dtype) -> Packing | None:
        """The packing of a batch for a model: the collator's, or worked out here.

        Args:
            mask: the attention mask [batch, length]; None for no padding.
            inputs: [batch, length, ...], on the model's device.
            dtype: of the model's weights.

        Returns:
            None where every position has to be computed.
        """
        if mask is None:
            mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device)
        if mask.dim() != 2:
            return None
        recurring = makes_kernels_per_size(inputs.device, dtype)
        if isinstance(mask, PackedMask) and mask.device == inputs.device:
            # On a CPU it costs nothing to pack again, by sizes that this precision wants.
            known = mask.packing
            if inputs.device.type != "cpu" or known is None or known.recurring == recurring:
                return known
        return cls.of(mask, recurring=recurring)

    def _parts(self) -> list[Tensor | None]:
        """Every index tensor, in one order."""
        tables = ((group.rows, group.real, group.absent) for group in self.groups)
        return [self.rows, self.starts, *(part for table in tables for part in table)]

    def index(self) -> Tensor:
        """All index tensors one after the other, int64, to be moved in one copy."""
        return torch.cat([part for part in self._parts() if part is not None])

    def with_index(self, index: Tensor) -> Self:
        """The same packing with its index tensors in ``index``, which ``index()`` gave."""
        sizes = [0 if part is None else len(part) for part in self._parts()]
        parts = zip(index.split(sizes), self._parts(), strict=True)
        _, starts, *moved = [None if old is None else new for new, old in parts]
        tables = zip(moved[::3], moved[1::3], moved[2::3], strict=True)
        groups = (
            replace(group, rows=places, real=real, absent=absent)
            for group, (places, real, absent) in zip(self.groups, tables, strict=True)
        )
        return replace(self, rows=index[: sizes[0]], starts=starts, groups=tuple(groups))

    @property
    def in_groups(self) -> bool:
        """Whether attention takes the groups in turn, as suits a CPU, or all sequences at once."""
        return self.rows.device.type == "cpu"

    @property
    def reach(self) -> int:
        """Positions per sequence that attention works on, at most."""
        return self.longest if self.in_groups else self.length

    @property
    def tokens(self) -> Tensor:
        """int64 [tokens], the flat positions of the real tokens."""
        return self.rows[: len(self.rows) - self.filling]

    def words(self, table: nn.Module, ids: Tensor) -> Tensor | None:
        """Word vectors [rows, hidden] of padded ``ids`` [batch, length], if the table is hooked.

        Whatever hooks it sees whole sequences, as NEFTune's noise must, which it scales by their
        length. None if nothing does: the packed ids serve as well.
        """
        return self.pack(table(ids)) if is_hooked(table) else None

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


class PackedMask(Tensor):
    """An attention mask [batch, length] that knows its packing and takes it along to a device.

    Whatever is computed from it is a plain tensor, so that code which knows nothing of packing
    finds the mask it expects.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    packing: Packing | None
    #: The packing's index tensors in one buffer, where the mask is.
    tables: Tensor | None

    @classmethod
    def of(cls, mask: Tensor, *, recurring: bool = False) -> Self:
        """Pack ``mask``, which lies on the host; its packing is None where it has none."""
        packing = Packing.of(mask, recurring=recurring)
        return cls._made(mask, packing, None if packing is None else packing.index())

    @classmethod
    def _made(cls, mask: Tensor, packing: Packing | None, tables: Tensor | None) -> Self:
        packed = mask.detach().as_subclass(cls)
        packed.tables = tables
        packed.packing = None
        if packing is not None and tables is not None:
            packed.packing = packing.with_index(tables)
        return packed

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As a tensor's; the packing goes to the same device."""
        mask = super().to(*args, **kwargs)
        tables = self.tables
        if tables is not None and tables.device != mask.device:
            tables = tables.to(mask.device, non_blocking=bool(kwargs.get("non_blocking")))
        return self._made(mask, self.packing, tables)

    def pin_memory(self, *args: Any) -> Self:  # type: ignore[override]
        """As a tensor's; the packing's buffer is pinned too."""
        tables = None if self.tables is None else self.tables.pin_memory(*args)
        return self._made(super().pin_memory(*args), self.packing, tables)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # From a worker of the data loader: a plain tensor travels, with its packing.
        return _packed_again, (self.as_subclass(Tensor), self.packing, self.tables)


def makes_kernels_per_size(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of a new size waits for its kernel, as in half precision on a CPU."""
    if device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    return dtype.itemsize == 2


def _packed_again(mask: Tensor, packing: Packing | None, tables: Tensor | None) -> PackedMask:
    return PackedMask._made(mask, packing, tables)


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
    members: list[int], length: int, counts: list[int], real: Tensor, places: Tensor
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

"""Disentangled attention of an accelerator: all sequences of a packed batch in a few launches.

Where Triton is, and has a kernel for the head's size, one launch per direction computes it
(``triton_attention``). Elsewhere (Apple's GPUs, Windows) sequences are padded for the attention
alone, in plain PyTorch: more arithmetic than the groups of ``packed_attention``, which are made for
a processor's cache, but as many launches for any batch. Both compute the same function.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from adalora.pretrained.deberta.packed_attention import Positions
from adalora.pretrained.deberta.packing import Packing


@dataclass(frozen=True)
class Sequences:
    """Where the sequences of a packed batch are, worked out once for all layers.

    Attributes:
        starts: int64 [batch + 1], the packed row that each starts at, and the end of the last.
        longest: no sequence has more tokens.
        rows: int64 [batch, longest], the packed row of each place; any where ``real`` is False.
        real: bool [batch, 1, 1, longest], which places hold a token.
        places: int64 [packed rows], the flat place of each row.
        buckets: int64 [longest, longest], the position tables' row for query i and key j.
        slots: int64 [2 · longest - 1], the same for each distance i - j.
    """

    starts: Tensor
    longest: int
    rows: Tensor
    real: Tensor
    places: Tensor
    buckets: Tensor
    slots: Tensor

    @classmethod
    def of(cls, packing: Packing, positions: Positions) -> Self:
        """Those of ``packing``, which has no sequence with gaps."""
        starts, longest = packing.starts, packing.longest
        assert starts is not None
        place = torch.arange(longest, device=starts.device)
        rows = (starts[:-1, None] + place).clamp_(max=len(packing.rows) - 1)
        real = place < (starts[1:] - starts[:-1])[:, None]
        sequence, position = packing.rows // packing.length, packing.rows % packing.length
        slots = positions.of(longest)
        buckets = slots[place[:, None] - place + (longest - 1)]
        places = sequence * longest + position
        return cls(starts, longest, rows, real[:, None, None], places, buckets, slots)


def whole_batch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_key: Tensor | None,
    position_query: Tensor | None,
    *,
    sequences: Sequences,
    scale: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attend within each sequence; arguments and result as of ``packed_attention``.

    Args:
        query: [rows, heads, d].
        key: [rows, heads, d].
        value: [rows, heads, d].
        position_key: table KR [heads, 2 · span, d], or None without that term.
        position_query: table QR [heads, 2 · span, d], or None without that term.
        sequences: which rows attend to one another.
        scale: divisor of the scores.
        dropout: probability of dropping an attention probability.

    Returns:
        [rows, heads, d], in the dtype of ``value``.
    """
    dtype = value.dtype
    with torch.autocast(value.device.type, enabled=False):
        # One factor of each product is scaled: a product may pass float16's largest number where
        # the score does not.
        query, key = query.to(dtype) / scale, key.to(dtype)
        if position_key is not None:
            position_key = position_key.to(dtype)
        if position_query is not None:
            position_query = position_query.to(dtype) / scale
        if _has_kernel(value):
            from adalora.pretrained.deberta import triton_attention

            c2p, p2c = (
                None if table is None else states.transpose(0, 1) @ table.transpose(1, 2)
                for states, table in ((query, position_key), (key, position_query))
            )
            seed = torch.zeros(1, dtype=torch.int64, device=value.device)
            if dropout > 0:
                seed.random_()
            output, _ = triton_attention.attention(
                query,
                key,
                value,
                c2p,
                p2c,
                sequences.starts,
                sequences.slots,
                sequences.longest,
                dropout,
                seed,
            )
            return output
        return _padded(query, key, value, position_key, position_query, sequences, dropout)


def _padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_key: Tensor | None,
    position_query: Tensor | None,
    sequences: Sequences,
    dropout: float,
) -> Tensor:
    """In plain PyTorch; query and the query's table are scaled."""
    # [batch, heads, longest, d]
    query, key, value = (x[sequences.rows].transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2)
    if position_key is not None:
        table = query @ position_key.transpose(-1, -2)
        scores = scores + table.gather(-1, sequences.buckets.expand_as(scores))
    if position_query is not None:
        table = key @ position_query.transpose(-1, -2)
        picked = table.gather(-1, sequences.buckets.t().expand_as(scores))
        scores = scores + picked.transpose(-1, -2)
    scores = scores.masked_fill(~sequences.real, float("-inf"))
    probabilities = F.dropout(torch.softmax(scores, dim=-1), dropout, training=dropout > 0)
    context = (probabilities @ value).transpose(1, 2).flatten(0, 1)
    return context.index_select(0, sequences.places)


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


def _has_kernel(value: Tensor) -> bool:
    """Whether the Triton kernels serve tensors like this one."""
    if not (value.is_cuda and _triton_is_installed()):
        return False
    from adalora.pretrained.deberta.triton_attention import HEAD_SIZES

    return value.shape[-1] in HEAD_SIZES and value.dtype != torch.float64

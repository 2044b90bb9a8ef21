"""Disentangled attention over packed tokens, with a backward pass of its own.

The same function as ``disentangled_scores`` with softmax, dropout and the product with the values,
which is the oracle of its tests. What makes it fast:

- relative positions along a row of the score matrix are consecutive, so a product with a slice of
  the position table, read along its diagonals (a strided view), gives the term; nothing is gathered
  per score, logarithmic buckets are gathered once per length, in the table;
- rows (and columns) are taken in blocks, so that a block meets only the positions it can reach;
- the table's gradient is summed over the batch by the same products;
- softmax is the kernel that computes in float32 whatever the dtype of its input; autocast, which on
  an accelerator would make its result float32 too, is off within: the operands share one dtype;
- heads come first in memory: one matrix product serves all sequences of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adalora.pretrained.deberta.packing import Group, Packing
from adalora.pretrained.dropout import keep_mask

#: Rows of a block; smaller blocks meet fewer positions, larger ones make better products.
BLOCK = 64


@dataclass(frozen=True)
class Positions:
    """How distances index the position tables.

    Attributes:
        index: int64 [2 · length - 1], the tables' row for the distances i - j from
            -(length - 1) to length - 1, for the longest sequence of the batch.
    """

    index: Tensor

    def of(self, length: int) -> Tensor:
        """The same for sequences of ``length``."""
        longest = (len(self.index) + 1) // 2
        return self.index.narrow(0, longest - length, 2 * length - 1)


@dataclass(frozen=True)
class PackedBatch:
    """What the layers of an unpadded encoder other than DeBERTaV3 are given for an attention mask.

    Attributes:
        packing: where the tokens are.
        bias: see ``packed_attention``.
        mask: for an attention over padded positions: True where a query may attend, or what is
            added to the scores, of which ``bias`` is a part; [batch, 1 or heads, 1 or length,
            length]. None where attention is over packed ones.
    """

    packing: Packing
    bias: Tensor | None = None
    mask: Tensor | None = None


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position_key: Tensor | None,
    position_query: Tensor | None,
    *,
    groups: tuple[Group, ...],
    positions: Positions | None,
    scale: float,
    dropout: float = 0.0,
    bias: Tensor | None = None,
) -> Tensor:
    """Attend within each sequence.

    Args:
        query: [rows, heads, d].
        key: [rows, heads, d].
        value: [rows, heads, d].
        position_key: table KR [heads, 2 · span, d], or None without that term.
        position_query: table QR [heads, 2 · span, d], or None without that term.
        groups: the sequences; each token belongs to one. Rows after all tokens hold none.
        positions: the tables' row of each distance; None without tables.
        scale: divisor of the scores.
        dropout: probability of dropping an attention probability.
        bias: added to the scaled scores, [heads or 1, longest, longest] or larger; None for none.
            That of one head serves all, and gets no gradient.

    Returns:
        [rows, heads, d], in the dtype of ``value``; zero in rows that hold no token.
    """
    tables = [
        None if table is None else table.to(value.dtype)
        for table in (position_key, position_query, bias)
    ]
    query, key = query.to(value.dtype), key.to(value.dtype)
    with torch.autocast(value.device.type, enabled=False):
        result: Tensor = _PackedAttention.apply(
            query, key, value, *tables, groups, positions, scale, dropout
        )
    return result


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_key: Tensor | None,
        position_query: Tensor | None,
        bias: Tensor | None,
        groups: tuple[Group, ...],
        positions: Positions | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        output = _result_like(value, groups)
        keep: list[Tensor] = []
        trains = any(ctx.needs_input_grad)
        for group in groups:
            q, k, v = _heads_first(group, query, key, value)
            table_key = table_query = None
            if positions is not None:
                index = positions.of(group.length)
                if position_key is not None:
                    table_key = position_key.index_select(1, index.flip(0))
                if position_query is not None:
                    table_query = position_query.index_select(1, index) / scale
            probabilities = _probabilities(q.div_(scale), k, table_key, table_query, bias, group)
            kept = [probabilities]
            if dropout > 0:
                kept.append(keep_mask(probabilities, dropout))
                # Rescaling the result is cheaper than rescaling the probabilities.
                dropped = probabilities * kept[1].to(probabilities.dtype)
                context = (dropped @ v).div_(1 - dropout)
            else:
                context = probabilities @ v
            _write(group, output, context)
            if trains:
                keep += kept
        if trains:
            ctx.save_for_backward(query, key, value, position_key, position_query, output, *keep)
            ctx.groups, ctx.positions, ctx.scale = groups, positions, scale
            ctx.dropout, ctx.bias = dropout, None if bias is None else (bias.shape, bias.dtype)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradient.device.type, enabled=False):
            return _PackedAttention._backward(ctx, gradient)

    @staticmethod
    def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, position_key, position_query, output, *keep = ctx.saved_tensors
        gradient = gradient.to(value.dtype)
        kept = iter(keep)
        gradients = [_result_like(x, ctx.groups) for x in (query, key, value)]
        d_position_key = _zeros(position_key)
        d_position_query = _zeros(position_query)
        d_bias = None
        if ctx.needs_input_grad[5]:
            shape, dtype = ctx.bias
            d_bias = value.new_zeros(shape, dtype=_wide(dtype))
        for group in ctx.groups:
            q, k, v, d_out, out = _heads_first(group, query, key, value, gradient, output)
            if group.absent is not None:
                d_out.flatten(1, 2).index_fill_(1, group.absent, 0.0)
            d_scores, d_v = _softmax_backward(kept, v, d_out, out, ctx.dropout)
            q.div_(ctx.scale)
            d_q, d_k = d_scores @ k, d_scores.transpose(-1, -2) @ q
            if d_bias is not None:
                d_bias[:, : group.length, : group.length] += d_scores.sum(dim=1)
            if ctx.positions is not None:
                index = ctx.positions.of(group.length)
            if d_position_key is not None:
                table = position_key.index_select(1, index.flip(0))
                d_table = _rows_backward(d_scores, q, table, d_q)
                d_position_key.index_add_(1, index.flip(0), d_table)
            if d_position_query is not None:
                table = position_query.index_select(1, index) / ctx.scale
                d_table = _rows_backward(d_scores.transpose(-1, -2), k, table, d_k)
                d_position_query.index_add_(1, index, d_table.div_(ctx.scale))
            for target, part in zip(gradients, (d_q.div_(ctx.scale), d_k, d_v), strict=True):
                _write(group, target, part)
        if d_position_key is not None:
            d_position_key = d_position_key.to(position_key.dtype)
        if d_position_query is not None:
            d_position_query = d_position_query.to(position_query.dtype)
        if d_bias is not None:
            d_bias = d_bias.to(ctx.bias[1])
        return *gradients, d_position_key, d_position_query, d_bias, None, None, None, None


def _result_like(packed: Tensor, groups: tuple[Group, ...]) -> Tensor:
    """To write the groups' tokens into; rows that hold no token are zero."""
    result = torch.empty_like(packed, memory_format=torch.contiguous_format)
    result[sum(group.tokens for group in groups) :].zero_()
    return result


def _zeros(table: Tensor | None) -> Tensor | None:
    """To sum a table's gradient in, over groups; float32 at least."""
    return None if table is None else torch.zeros_like(table, dtype=_wide(table.dtype))


def _heads_first(group: Group, *packed: Tensor) -> Iterator[Tensor]:
    """[rows, heads, d] -> [heads, count, length, d] of each, a copy."""
    sizes = (group.count, group.length)
    if group.rows is None:
        for x in packed:
            heads = group.gather(x).unflatten(0, sizes).permute(2, 0, 1, 3)
            yield heads.clone(memory_format=torch.contiguous_format)
        return
    # Rows of one head each: gathering and turning round are then one copy.
    count = packed[0].shape[1]
    index = (group.rows * count + torch.arange(count, device=group.rows.device)[:, None]).flatten()
    for x in packed:
        yield x.flatten(0, 1).index_select(0, index).unflatten(0, (count, *sizes))


def _write(group: Group, packed: Tensor, heads: Tensor) -> None:
    """The other way round, into the group's tokens."""
    group.scatter(heads.permute(1, 2, 0, 3).flatten(0, 1), packed)


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, length, BLOCK):
        yield begin, min(begin + BLOCK, length)


def _diagonals(table: Tensor, length: int) -> Tensor:
    """View of [..., rows, length + rows - 1]: entry (r, c) is column c - r + rows - 1 of row r."""
    rows, width = table.shape[-2:]
    return table.as_strided(
        (*table.shape[:-1], length),
        (*table.stride()[:-2], width - 1, 1),
        table.storage_offset() + rows - 1,
    )


def _reach(table: Tensor, begin: int, end: int, length: int) -> Tensor:
    """Rows of a table over all 2 · length - 1 distances that positions begin..end-1 can meet."""
    return table.narrow(1, length - end, length + end - begin - 1)


def _position_term(rows: Tensor, table: Tensor, length: int) -> Tensor:
    """[heads, count, r, d] and a reach [heads, length + r - 1, d] -> [heads, count, r, length]."""
    # A product in half precision takes whole tensors, or their transposes, and copies anything else
    # the slow way, entry by entry across the rows.
    whole = table.contiguous() if table.element_size() == 2 else table
    products = rows.flatten(1, 2) @ whole.transpose(-1, -2)
    return _diagonals(products.unflatten(1, rows.shape[1:3]), length)


def _probabilities(
    query: Tensor,
    key: Tensor,
    table_key: Tensor | None,
    table_query: Tensor | None,
    bias: Tensor | None,
    group: Group,
) -> Tensor:
    """Softmax of the scores, [heads, count, length, length]; the inputs are scaled."""
    length = group.length
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores += bias[:, None, :length, :length]
    for begin, end in _blocks(length):
        if table_key is not None:
            rows = scores[:, :, begin:end]
            table = _reach(table_key, begin, end, length)
            rows += _position_term(query[:, :, begin:end], table, length)
        if table_query is not None:
            columns = scores[:, :, :, begin:end]
            table = _reach(table_query, begin, end, length)
            term = _position_term(key[:, :, begin:end], table, length).transpose(-1, -2)
            # Adding across the rows takes three times what copying across them and adding takes.
            columns += term.contiguous()
    if group.absent is not None:
        # Adding is vectorised, filling by booleans is not.
        keys = scores.new_zeros(group.count * length).index_fill_(0, group.absent, -math.inf)
        scores += keys.view(1, group.count, 1, length)
    return torch.softmax(scores, dim=-1)


def _softmax_backward(
    kept: Iterator[Tensor], value: Tensor, d_out: Tensor, out: Tensor, chance: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the scores and of the values."""
    # The sum over a row of probability times its gradient is the output times its gradient.
    mean = (d_out * out).sum(dim=-1, keepdim=True)
    probabilities = dropped = next(kept)
    if chance > 0:
        d_out = d_out / (1 - chance)
    d_scores = d_out @ value.transpose(-1, -2)
    if chance > 0:
        mask = next(kept).to(probabilities.dtype)
        d_scores.mul_(mask)
        dropped = probabilities * mask
    d_value = dropped.transpose(-1, -2) @ d_out
    return d_scores.sub_(mean).mul_(probabilities), d_value


def _rows_backward(d_scores: Tensor, rows: Tensor, table: Tensor, d_rows: Tensor) -> Tensor:
    """Gradient of a table over all distances; adds that of the rows to ``d_rows``."""
    length = rows.shape[2]
    d_table = torch.zeros_like(table, dtype=_wide(table.dtype))
    products = d_scores.new_empty(0)
    for begin, end in _blocks(length):
        size = end - begin
        if products.shape[-2:-1] != (size,):
            products = d_scores.new_zeros(*rows.shape[:2], size, length + size - 1)
        # Off the diagonals it stays zero, from one block to the next.
        _diagonals(products, length).copy_(d_scores[:, :, begin:end])
        flat = products.flatten(1, 2)
        reach = _reach(table, begin, end, length)
        d_rows[:, :, begin:end] += (flat @ reach).unflatten(1, (rows.shape[1], size))
        part = flat.transpose(-1, -2) @ rows[:, :, begin:end].flatten(1, 2)
        _reach(d_table, begin, end, length).add_(part)
    return d_table


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

"""Disentangled attention over packed tokens as Triton kernels, forward and backward.

One launch serves all sequences and heads. Nothing is padded, nothing is summed by atomic additions
(the same inputs give the same bits), and dropout draws from a counter, so that the backward pass
makes the forward pass's mask again in place of storing it. The operator is registered with torch
(``adalora::packed_attention``), which makes ``torch.compile`` treat it as one node.

The scheme is FlashAttention-2's (arXiv 2307.08691) with the two position terms of DeBERTa read from
products that are made before: of each token with each row of the position tables.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Head sizes that the kernels are made for.
HEAD_SIZES = (32, 64, 128)
#: Rows and buckets of a tile of ``_fold``.
FOLD_TILE = 32


def tile_of(dtype: torch.dtype, size: int) -> tuple[int, int]:
    """Queries and keys of a tile, and warps that work on it, for a head size.

    The largest that spill no registers on compute capabilities 8.0 and 9.0, which
    tests/accelerators compiles for.
    """
    if dtype == torch.float32:
        return 16, 4
    return 32, 4 if size <= 64 else 8


@triton.jit
def _offsets(begin, at, heads, head, D: tl.constexpr):
    """Where the entries of the sequence's tokens ``at`` are, of one head, in [tokens, heads, d]."""
    return ((begin + at)[:, None] * heads + head) * D + tl.arange(0, D)[None, :]


@triton.jit
def _rows_at(source, offsets, inside):
    """A tile of ``source``, zero in the rows beyond the sequence."""
    return tl.load(source + offsets, mask=inside[:, None], other=0.0)


@triton.jit
def _scores(
    query, key, c2p, p2c, slots, base, i, j, length, rows, longest,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr,
):  # fmt: skip
    """Scores of a tile, float32; -inf at keys beyond the sequence."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee")
    inside = (i < length)[:, None] & (j < length)[None, :]
    slot = tl.load(slots + (i[:, None] - j[None, :] + longest - 1), mask=inside, other=0)
    if HAS_C2P:
        scores += tl.load(c2p + (base + i)[:, None] * rows + slot, mask=inside, other=0.0)
    if HAS_P2C:
        scores += tl.load(p2c + (base + j)[None, :] * rows + slot, mask=inside, other=0.0)
    return tl.where((j < length)[None, :], scores, float("-inf"))


@triton.jit
def _kept(seed, base, i, j, longest, dropout):
    """1 / (1 - dropout) where a probability is kept, else 0; the same for the same arguments."""
    draws = tl.rand(seed, ((base + i)[:, None] * longest + j[None, :]).to(tl.int32))
    return tl.where(draws >= dropout, 1.0 / (1.0 - dropout), 0.0)


@triton.jit
def _forward(
    query, key, value, c2p, p2c, starts, slots, seed, output, lse,
    tokens, heads, rows, longest, dropout,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Output and logarithm of the softmax's divisor of one tile of queries."""
    begin = tl.load(starts + tl.program_id(1))
    length = (tl.load(starts + tl.program_id(1) + 1) - begin).to(tl.int32)
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if tl.program_id(0) * TILE >= length:
        return
    head = tl.program_id(2)
    base = head.to(tl.int64) * tokens + begin
    at_i = _offsets(begin, i, heads, head, D)
    q = _rows_at(query, at_i, i < length)
    largest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    context = tl.zeros([TILE, D], tl.float32)
    for first in range(0, length, TILE):
        j = first + tl.arange(0, TILE)
        at_j = _offsets(begin, j, heads, head, D)
        k = _rows_at(key, at_j, j < length)
        v = _rows_at(value, at_j, j < length)
        scores = _scores(q, k, c2p, p2c, slots, base, i, j, length, rows, longest, HAS_C2P, HAS_P2C)
        higher = tl.maximum(largest, tl.max(scores, axis=1))
        shrink = tl.exp(largest - higher)
        weights = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        if HAS_DROPOUT:
            weights *= _kept(tl.load(seed), base, i, j, longest, dropout)
        context = context * shrink[:, None]
        context += tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        largest = higher
    context /= total[:, None]
    tl.store(output + at_i, context.to(q.dtype), mask=(i < length)[:, None])
    tl.store(lse + base + i, largest + tl.log(total), mask=i < length)


@triton.jit
def _backward_queries(
    query, key, value, c2p, p2c, starts, slots, seed, lse, d_output, delta, d_query, d_scores,
    tokens, heads, rows, longest, dropout,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries; their scores' gradients by query, for ``_fold``."""
    begin = tl.load(starts + tl.program_id(1))
    length = (tl.load(starts + tl.program_id(1) + 1) - begin).to(tl.int32)
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if tl.program_id(0) * TILE >= length:
        return
    head = tl.program_id(2)
    base = head.to(tl.int64) * tokens + begin
    at_i = _offsets(begin, i, heads, head, D)
    q = _rows_at(query, at_i, i < length)
    g = _rows_at(d_output, at_i, i < length)
    divisor = tl.load(lse + base + i, mask=i < length, other=0.0)
    mean = tl.load(delta + base + i, mask=i < length, other=0.0)
    gradient = tl.zeros([TILE, D], tl.float32)
    for first in range(0, length, TILE):
        j = first + tl.arange(0, TILE)
        at_j = _offsets(begin, j, heads, head, D)
        k = _rows_at(key, at_j, j < length)
        v = _rows_at(value, at_j, j < length)
        scores = _scores(q, k, c2p, p2c, slots, base, i, j, length, rows, longest, HAS_C2P, HAS_P2C)
        probabilities = tl.exp(scores - divisor[:, None])
        d_kept = tl.dot(g, tl.trans(v), input_precision="ieee")
        if HAS_DROPOUT:
            d_kept *= _kept(tl.load(seed), base, i, j, longest, dropout)
        ds = (probabilities * (d_kept - mean[:, None])).to(q.dtype)
        if HAS_C2P:
            inside = (i < length)[:, None] & (j < length)[None, :]
            tl.store(d_scores + (base + i)[:, None] * longest + j[None, :], ds, mask=inside)
        gradient += tl.dot(ds, k, input_precision="ieee")
    tl.store(d_query + at_i, gradient.to(q.dtype), mask=(i < length)[:, None])


@triton.jit
def _backward_keys(
    query, key, value, c2p, p2c, starts, slots, seed, lse, d_output, delta,
    d_key, d_value, d_scores, tokens, heads, rows, longest, dropout,
    HAS_C2P: tl.constexpr, HAS_P2C: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values; their scores' gradients by key, for ``_fold``."""
    begin = tl.load(starts + tl.program_id(1))
    length = (tl.load(starts + tl.program_id(1) + 1) - begin).to(tl.int32)
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if tl.program_id(0) * TILE >= length:
        return
    head = tl.program_id(2)
    base = head.to(tl.int64) * tokens + begin
    at_j = _offsets(begin, j, heads, head, D)
    k = _rows_at(key, at_j, j < length)
    v = _rows_at(value, at_j, j < length)
    of_key = tl.zeros([TILE, D], tl.float32)
    of_value = tl.zeros([TILE, D], tl.float32)
    for first in range(0, length, TILE):
        i = first + tl.arange(0, TILE)
        at_i = _offsets(begin, i, heads, head, D)
        q = _rows_at(query, at_i, i < length)
        g = _rows_at(d_output, at_i, i < length)
        # Queries beyond the sequence: a probability of exp(score - inf), which is 0.
        divisor = tl.load(lse + base + i, mask=i < length, other=float("inf"))
        mean = tl.load(delta + base + i, mask=i < length, other=0.0)
        scores = _scores(q, k, c2p, p2c, slots, base, i, j, length, rows, longest, HAS_C2P, HAS_P2C)
        probabilities = tl.exp(scores - divisor[:, None])
        d_kept = tl.dot(g, tl.trans(v), input_precision="ieee")
        kept = probabilities
        if HAS_DROPOUT:
            mask = _kept(tl.load(seed), base, i, j, longest, dropout)
            kept = probabilities * mask
            d_kept *= mask
        of_value += tl.dot(tl.trans(kept.to(q.dtype)), g, input_precision="ieee")
        ds = (probabilities * (d_kept - mean[:, None])).to(q.dtype)
        if HAS_P2C:
            inside = (i < length)[:, None] & (j < length)[None, :]
            tl.store(d_scores + (base + j)[None, :] * longest + i[:, None], ds, mask=inside)
        of_key += tl.dot(tl.trans(ds), q, input_precision="ieee")
    tl.store(d_key + at_j, of_key.to(k.dtype), mask=(j < length)[:, None])
    tl.store(d_value + at_j, of_value.to(k.dtype), mask=(j < length)[:, None])


@triton.jit
def _fold(
    d_scores, starts, edges, gradient, tokens, rows, longest,
    SIGN: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum scores' gradients over the distances of each bucket, in one fixed order.

    A bucket's distances follow one another, since buckets never fall as the distance grows:
    those of bucket b are ``edges[b] - (longest - 1)`` and on. ``SIGN`` is -1 where the rows are
    queries, whose distance to a key is i - j, and 1 where they are keys.
    """
    begin = tl.load(starts + tl.program_id(1))
    length = (tl.load(starts + tl.program_id(1) + 1) - begin).to(tl.int32)
    blocks = tl.cdiv(rows, TILE)
    block, head = tl.program_id(2) % blocks, tl.program_id(2) // blocks
    t = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if tl.program_id(0) * TILE >= length:
        return
    bucket = block * TILE + tl.arange(0, TILE)
    edge = tl.load(edges + bucket, mask=bucket < rows, other=0).to(tl.int32)
    count = tl.load(edges + bucket + 1, mask=bucket < rows, other=0).to(tl.int32) - edge
    at = head.to(tl.int64) * tokens + begin + t
    nearest = t[:, None] + SIGN * (edge - (longest - 1))[None, :]
    total = tl.zeros([TILE, TILE], tl.float32)
    for step in range(tl.max(count)):
        other = nearest + SIGN * step
        there = (step < count)[None, :] & (other >= 0) & (other < length) & (t < length)[:, None]
        total += tl.load(d_scores + at[:, None] * longest + other, mask=there, other=0.0)
    tl.store(
        gradient + at[:, None] * rows + bucket[None, :],
        total.to(gradient.dtype.element_ty),
        mask=(t < length)[:, None] & (bucket < rows)[None, :],
    )


@torch.library.custom_op("adalora::packed_attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    c2p: Tensor | None,
    p2c: Tensor | None,
    starts: Tensor,
    slots: Tensor,
    longest: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Attend within each sequence of packed tokens.

    Args:
        query: [tokens, heads, d], already divided by the scale of the scores; d in HEAD_SIZES.
        key: [tokens, heads, d], of one dtype with the query: float32, bfloat16 or float16.
        value: [tokens, heads, d].
        c2p: [heads, tokens, rows], each query times each row of the table KR; None without.
        p2c: [heads, tokens, rows], each key times each row of QR over the scale; None without.
        starts: int64 [sequences + 1], the first token of each sequence, and the end of the last.
        slots: int64 [2 · longest - 1], the tables' row for the distances i - j from
            -(longest - 1) on; it never falls.
        longest: no sequence has more tokens.
        dropout: probability of dropping an attention probability, below 1.
        seed: int64 [1], what dropout draws from; on the device, so that nothing waits for it.

    Returns:
        The output [tokens, heads, d], zero at tokens of no sequence, and for the backward pass the
        logarithm of each row's sum of exponentials, float32 [heads, tokens].
    """
    query, key, value = (x.contiguous() for x in (query, key, value))
    output = torch.zeros_like(value)
    tokens, heads, d = query.shape
    lse = torch.zeros(heads, tokens, dtype=torch.float32, device=query.device)
    terms = [None if x is None else x.contiguous() for x in (c2p, p2c)]
    tile, warps = tile_of(query.dtype, d)
    _forward[(triton.cdiv(longest, tile), len(starts) - 1, heads)](
        query, key, value, *terms, starts, slots, seed, output, lse,
        tokens, heads, _rows(c2p, p2c), longest, dropout,
        HAS_C2P=c2p is not None, HAS_P2C=p2c is not None, HAS_DROPOUT=dropout > 0,
        D=d, TILE=tile, num_warps=warps, num_stages=1,
    )  # fmt: skip
    return output, lse


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, _size = query.shape
    lse = query.new_empty(heads, tokens, dtype=torch.float32)
    return torch.empty_like(value, memory_format=torch.contiguous_format), lse


@torch.library.custom_op("adalora::packed_attention_backward", mutates_args=())
def attention_backward(
    d_output: Tensor,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    c2p: Tensor | None,
    p2c: Tensor | None,
    starts: Tensor,
    slots: Tensor,
    longest: int,
    dropout: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value, c2p and p2c; of a term that is None, an empty tensor."""
    query, key, value = (x.contiguous() for x in (query, key, value))
    d_output = d_output.to(value.dtype).contiguous()
    tokens, heads, d = query.shape
    delta = (d_output.float() * output.float()).sum(-1).t().contiguous()
    gradients = [torch.zeros_like(x) for x in (query, key, value)]
    terms = [None if x is None else x.contiguous() for x in (c2p, p2c)]
    rows = _rows(c2p, p2c)
    scores = [
        query.new_empty(0 if term is None else heads * tokens * longest) for term in (c2p, p2c)
    ]
    inputs = (query, key, value, *terms, starts, slots, seed, lse, d_output, delta)
    sizes = (tokens, heads, rows, longest, dropout)
    tile, warps = tile_of(query.dtype, d)
    options: dict[str, Any] = {
        "HAS_C2P": c2p is not None, "HAS_P2C": p2c is not None, "HAS_DROPOUT": dropout > 0,
        "D": d, "TILE": tile, "num_warps": warps, "num_stages": 1,
    }  # fmt: skip
    shape = (triton.cdiv(longest, tile), len(starts) - 1, heads)
    _backward_queries[shape](*inputs, gradients[0], scores[0], *sizes, **options)
    _backward_keys[shape](*inputs, *gradients[1:], scores[1], *sizes, **options)
    edges = torch.searchsorted(slots, torch.arange(rows + 1, device=slots.device))
    for sign, term, of_scores in zip((-1, 1), (c2p, p2c), scores, strict=True):
        if term is None:
            gradients.append(query.new_empty(0))
            continue
        gradients.append(torch.zeros_like(term, memory_format=torch.contiguous_format))
        blocks = triton.cdiv(rows, FOLD_TILE)
        _fold[(triton.cdiv(longest, FOLD_TILE), len(starts) - 1, heads * blocks)](
            of_scores, starts, edges, gradients[-1], tokens, rows, longest,
            SIGN=sign, TILE=FOLD_TILE, num_warps=4, num_stages=1,
        )  # fmt: skip
    return gradients[0], gradients[1], gradients[2], gradients[3], gradients[4]


@attention_backward.register_fake
def _(
    d_output: Tensor,
    output: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    c2p: Tensor | None,
    p2c: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    contiguous = torch.contiguous_format
    of_query, of_key, of_value = (
        torch.empty_like(x, memory_format=contiguous) for x in (query, key, value)
    )
    of_c2p, of_p2c = (
        query.new_empty(0) if x is None else torch.empty_like(x, memory_format=contiguous)
        for x in (c2p, p2c)
    )
    return of_query, of_key, of_value, of_c2p, of_p2c


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, c2p, p2c, starts, slots, longest, dropout, seed = inputs
    ctx.save_for_backward(*output, query, key, value, c2p, p2c, starts, slots, seed)
    ctx.longest, ctx.dropout = longest, dropout


def _backward(ctx: Any, d_output: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, c2p, p2c, starts, slots, seed = ctx.saved_tensors
    *gradients, of_c2p, of_p2c = attention_backward(
        d_output, *tensors, c2p, p2c, starts, slots, ctx.longest, ctx.dropout, seed
    )
    of_terms = (None if c2p is None else of_c2p, None if p2c is None else of_p2c)
    return (*gradients, *of_terms, None, None, None, None, None)


attention.register_autograd(_backward, setup_context=_keep_for_backward)


def _rows(c2p: Tensor | None, p2c: Tensor | None) -> int:
    """Rows of the position tables; 0 without."""
    term = p2c if c2p is None else c2p
    return 0 if term is None else term.shape[-1]

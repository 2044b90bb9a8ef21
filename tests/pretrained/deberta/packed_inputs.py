"""Inputs of the attention over packed tokens, and what the readable reference makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from adalora.pretrained.deberta.packed_attention import Positions
from adalora.pretrained.deberta.reference import disentangled_scores, relative_buckets

HEADS, WIDTH = 3, 8


def mask_of(lengths: list[int], longest: int | None = None) -> Tensor:
    """[batch, length], the first tokens of each sequence are real."""
    position = torch.arange(longest or max(lengths))
    return (position < torch.tensor(lengths)[:, None]).long()


def positions_of(length: int, buckets: int, maximum: int, span: int) -> Positions:
    table = relative_buckets(length, buckets=buckets, max_position=maximum)
    distances = torch.cat([table[0].flip(0)[:-1], table[:, 0]])
    return Positions((distances + span).clamp(0, 2 * span - 1))


def inputs_of(
    tokens: int, span: int, dtype: torch.dtype = torch.float64, width: int = WIDTH
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "query": draw(tokens, HEADS, width),
        "key": draw(tokens, HEADS, width),
        "value": draw(tokens, HEADS, width),
        "position_key": draw(HEADS, 2 * span, width),
        "position_query": draw(HEADS, 2 * span, width),
    }


def reference(
    inputs: dict[str, Tensor | None],
    mask: Tensor,
    buckets: Tensor,
    *,
    terms: int = 3,
    factors: Tensor | None = None,
) -> Tensor:
    """Padded, by ``disentangled_scores``; ``factors`` multiply the probabilities (dropout)."""
    batch, length = mask.shape
    flat = mask.flatten().nonzero().squeeze(1)

    def pad(packed: Any) -> Tensor:
        padded = packed.new_zeros(batch * length, *packed.shape[1:]).index_copy(0, flat, packed)
        heads: Tensor = padded.unflatten(0, (batch, length)).transpose(1, 2)
        return heads

    query, key, value = (pad(inputs[name]) for name in ("query", "key", "value"))
    scores = disentangled_scores(
        query,
        key,
        buckets,
        terms=terms,
        position_key=inputs["position_key"],
        position_query=inputs["position_query"],
    )
    scores = scores.masked_fill(~mask.bool()[:, None, None, :], -math.inf)
    probabilities = scores.softmax(-1)
    if factors is not None:
        probabilities = probabilities * factors
    context = (
        (probabilities.to(value.dtype) @ value).transpose(1, 2).reshape(batch * length, HEADS, -1)
    )
    return context[flat]

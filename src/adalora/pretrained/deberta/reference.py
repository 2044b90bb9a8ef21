"""Disentangled attention scores, written to be read: the oracle of every faster form.

DeBERTa (arXiv 2006.03654) eq. 4: the score of query i and key j is the sum of three products,

    content to content    Q_i · K_j
    content to position   Q_i · KR_δ(i,j)
    position to content   K_j · QR_δ(i,j)

over sqrt(d · terms), where δ(i, j) is the bucket of the distance i - j. The paper writes δ(j, i) in
the third; the published weights were trained with δ(i, j), by Microsoft's code and transformers'.
DeBERTaV3 keeps distances below half a bucket range as they are and takes logarithms of longer ones.
The relative tables are shared by the whole batch: nothing is repeated per example.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_buckets(
    length: int, *, buckets: int, max_position: int, device: torch.device | None = None
) -> Tensor:
    """δ(i, j) for all pairs of positions: int64 [length, length], antisymmetric.

    Args:
        length: tokens in the sequence.
        buckets: half the number of buckets; 0 or less keeps every distance as it is.
        max_position: distance that the last bucket ends at, in tokens.
        device: where the result lies.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return distance_buckets(distance, buckets=buckets, max_position=max_position)


def distance_buckets(distance: Tensor, *, buckets: int, max_position: int) -> Tensor:
    """δ of distances i - j, int64 in any shape; it never falls as the distance grows.

    Args:
        distance: in tokens.
        buckets: half the number of buckets; 0 or less keeps every distance as it is.
        max_position: distance that the last bucket ends at, in tokens.
    """
    if buckets <= 0 or max_position <= 0:
        return distance
    middle = buckets // 2
    magnitude = distance.abs().clamp(min=middle).float()
    # ceil(log(m / mid) / log((max - 1) / mid) * (mid - 1)) + mid, in float32 as upstream computes
    # it: at a bucket's edge another precision could fall on the other side.
    span = torch.log(torch.tensor((max_position - 1) / middle, device=distance.device))
    logarithmic = torch.ceil(torch.log(magnitude / middle) / span * (middle - 1)) + middle
    far = (logarithmic * distance.sign()).long()
    return torch.where(distance.abs() <= middle, distance, far)


def disentangled_scores(
    query: Tensor,
    key: Tensor,
    buckets: Tensor,
    *,
    terms: int,
    position_key: Tensor | None = None,
    position_query: Tensor | None = None,
) -> Tensor:
    """Attention scores before mask and softmax.

    Args:
        query: projected queries [batch, heads, length, d].
        key: projected keys [batch, heads, length, d].
        buckets: δ(i, j), int64 [length, length].
        terms: products in the sum, by which the scale is chosen; DeBERTa counts those that the
            configuration names, also where relative attention is off.
        position_key: projected table KR [heads, 2·span, d]; None leaves content-to-position out.
        position_query: projected table QR [heads, 2·span, d]; None leaves position-to-content out.

    Returns:
        [batch, heads, length, length], float32 if the inputs are of half precision, else of their
        dtype.
    """
    # One factor of each product is scaled, not the product: q·k may pass float16's largest number
    # where the score does not. The sum is wider than half precision, which has too few digits.
    scale = math.sqrt(query.shape[-1] * terms)
    query = query / scale
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.transpose(-1, -2)).to(wide)
    if position_key is not None:
        table = query @ position_key.transpose(-1, -2)
        scores = scores + _pick(table, buckets, span=position_key.shape[-2] // 2)
    if position_query is not None:
        table = key @ (position_query / scale).transpose(-1, -2)
        picked = _pick(table, -buckets, span=position_query.shape[-2] // 2)
        scores = scores + picked.transpose(-1, -2)
    return scores


def _pick(table: Tensor, distance: Tensor, *, span: int) -> Tensor:
    """table[..., i, distance[i, j] + span] for all i, j; distances beyond the table are clamped."""
    index = (distance + span).clamp(0, 2 * span - 1)
    return table.gather(-1, index.expand(*table.shape[:-2], *index.shape))

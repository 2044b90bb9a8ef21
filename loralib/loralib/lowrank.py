"""The product every adapted linear map computes: base plus low-rank update.

    y = x Wᵀ + bias + (x̃ Dᵀ) Uᵀ        W [out, in], D (down) [r, in], U (up) [out, r]

x̃ is x after the adapter's dropout. The scale is expected inside D or U, where it costs r·in
multiplications instead of one per output. The low-rank part runs in the adapter's precision
(or autocast's), the sum in the base's.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    up: Tensor,
    adapter_input: Tensor | None = None,
) -> Tensor:
    """Apply a linear map and its low-rank update.

    Args:
        x: Input [..., in], in a dtype that ``weight`` accepts.
        weight: Base weight [out, in].
        bias: Base bias [out] or None.
        down: First low-rank factor [r, in], with the scale already in it.
        up: Second low-rank factor [out, r].
        adapter_input: Input of the low-rank part [..., in] (x after dropout); None means ``x``.

    Returns:
        [..., out], in the dtype of the base product.
    """
    base = F.linear(x, weight, bias)
    source = x if adapter_input is None else adapter_input
    update = F.linear(F.linear(source.to(down.dtype), down), up)
    return base + update.to(base.dtype)

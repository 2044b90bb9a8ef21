"""The product every adapted linear map computes: base plus low-rank update.

    y = x Wᵀ + bias + (x̃ Dᵀ) Uᵀ        W [out, in], D (down) [r, in], U (up) [out, r]

x̃ is x after the adapter's dropout. The scale is expected inside D or U, where it costs r·in
multiplications instead of one per output. Where all operands share a dtype (by autocast or by
themselves) one autograd function adds the low-rank product into the base product, forward and
backward, so that nothing of the size of the output or the input is made twice. Otherwise the
low-rank part runs in the adapter's precision and the sum in the base's.
"""

from __future__ import annotations

from typing import Any

import torch
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
    source = x if adapter_input is None else adapter_input
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        shared = source is x
        x, weight, down, up = (part.to(dtype) for part in (x, weight, down, up))
        source = x if shared else source.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if {weight.dtype, down.dtype, up.dtype, source.dtype} == {x.dtype}:
        other = None if source is x else source
        result: Tensor = _LowRankLinear.apply(x, weight, bias, down, up, other)
        return result
    base = F.linear(x, weight, bias)
    update = F.linear(F.linear(source.to(down.dtype), down), up)
    return base + update.to(base.dtype)


class _LowRankLinear(torch.autograd.Function):
    """The fused form; ``other`` is the adapter's input where it is not ``x``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        other: Tensor | None,
    ) -> Tensor:
        source = (x if other is None else other).reshape(-1, x.shape[-1])
        output = F.linear(x, weight, bias)
        inner = source @ down.T
        output.view(-1, output.shape[-1]).addmm_(inner, up.T)
        # The input serves the factor ``down``, and a base weight that trains.
        kept = x if weight.requires_grad or other is None else None
        ctx.save_for_backward(kept, other, weight, down, up, inner)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, other, weight, down, up, inner = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, _, needs_other = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        d_inner = rows @ up
        source = x if other is None else other
        d_down = d_inner.T @ source.reshape(-1, source.shape[-1])
        d_up = rows.T @ inner
        d_x = d_other = None
        if needs_x:
            d_x = rows @ weight
            if other is None:
                d_x.addmm_(d_inner, down)
            d_x = d_x.view_as(source)
        if needs_other:
            d_other = (d_inner @ down).view_as(other)
        d_weight = rows.T @ x.reshape(-1, x.shape[-1]) if needs_weight else None
        d_bias = rows.sum(dim=0) if needs_bias else None
        return d_x, d_weight, d_bias, d_down, d_up, d_other

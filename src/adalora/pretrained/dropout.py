"""Dropout that costs the CPU a fraction: fewer random numbers, and no arithmetic on booleans."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def keep_mask(like: Tensor, chance: float) -> Tensor:
    """1 with probability 1 - ``chance`` (to 2⁻¹⁶), else 0: int8, in the shape of ``like``.

    Four decisions are taken from each 64-bit random number of torch's generator: drawing is most
    of what dropout costs on a CPU. The rest is booleans, whose comparisons and products torch does
    not vectorise (ten times the time of integers', measured), so there are none.
    """
    count = like.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    # Over the whole range: from the lowest value to (included, for None) the largest.
    words.random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(like.shape)
    lowest_kept = max(round(chance * 2**16), 1) - 2**15
    return bits.clamp_(lowest_kept - 1, lowest_kept).sub_(lowest_kept - 1).to(torch.int8)


def fast_dropout(x: Tensor, chance: float) -> Tensor:
    """Drop with probability 0 < ``chance`` < 1 and rescale the rest."""
    dropped: Tensor = _Dropout.apply(x, chance)
    return dropped


class FastDropout(nn.Dropout):
    """``nn.Dropout`` with masks from ``keep_mask`` on the CPU; elsewhere torch's own."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop and rescale while training."""
        drops = self.training and 0 < self.p < 1 and input.is_cpu
        if not drops or torch.compiler.is_compiling():
            return super().forward(input)
        return fast_dropout(input, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Put a ``FastDropout`` in the place of every ``nn.Dropout`` within ``model``.

    Subclasses of ``nn.Dropout``, and what a model drops by a function, stay as they are.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, chance: float) -> Tensor:
        kept = keep_mask(x, chance)
        ctx.save_for_backward(kept)
        ctx.factor = 1 / (1 - chance)
        return (x * kept.to(x.dtype)).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * kept.to(gradient.dtype)).mul_(ctx.factor), None

"""DoRALinear: a linear layer whose update has a magnitude and a direction, trained apart.

    x W'ᵀ + bias,    W' = m ⊙ V / ‖V‖,    V = W + lora_alpha / r · B A

m = ``lora_magnitude`` [out]; the norm is of each output's row of V. Liu et al., DoRA (arXiv
2402.09353), eq. 5; as in §4.3 there, the norm is a constant to the gradient.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Linear
from .lowrank import lowrank_linear


class DoRALinear(Linear):
    """``Linear`` with a trained norm per output.

    Parameters besides those of ``Linear``: ``lora_magnitude`` [out], in the adapter's dtype, which
    starts as the norms of the base's rows, so that the layer starts as its base. Arguments are
    those of ``Linear``.

    Raises:
        ValueError: if ``fan_in_fan_out`` is asked for.
    """

    FACTORS: ClassVar[dict[str, int | None]] = {**Linear.FACTORS, "lora_magnitude": None}

    lora_magnitude: nn.Parameter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.fan_in_fan_out:
            raise ValueError("DoRALinear keeps its weight as [out, in]; leave fan_in_fan_out out")

    def _add_adapter(self) -> None:
        super()._add_adapter()
        self.lora_magnitude = nn.Parameter(self.lora_B.new_zeros(self.out_features))

    def reset_lora_parameters(self) -> None:
        """As ``Linear``; the magnitudes become the norms of the base's rows."""
        super().reset_lora_parameters()
        if not self.weight.is_meta:
            self.lora_magnitude.data.copy_(self._norm())

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """‖V‖ of each row, [out], without forming V: from ‖W‖² + 2 W·(U D) + ‖U D‖²."""
        with torch.autocast(self.weight.device.type, enabled=False):
            down, up = self._update()
            base = (self.weight if self._base_weight is None else self._base_weight).to(down.dtype)
            squared = torch.linalg.vector_norm(base, dim=1).square()
            squared += 2 * (up * (base @ down.T)).sum(dim=1)
            squared += (up * (up @ (down @ down.T))).sum(dim=1)
            # A row of zeros has no direction.
            return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()

    def delta_weight(self) -> Tensor:
        """W' - W as [out, in], in the adapter's dtype."""
        self._require_adapter()
        down, up = self._update()
        base = (self.weight if self._base_weight is None else self._base_weight).to(down.dtype)
        gain = (self.lora_magnitude / self._norm()).unsqueeze(1)
        return gain * (base + up @ down) - base

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if self.merged or not self.has_adapter:
            return F.linear(x, self.weight, self.bias)
        dropped = self.lora_dropout(x)
        product = lowrank_linear(x, self.weight, None, *self._update(), adapter_input=dropped)
        scaled = product * (self.lora_magnitude / self._norm()).to(product.dtype)
        return scaled if self.bias is None else scaled + self.bias.to(product.dtype)

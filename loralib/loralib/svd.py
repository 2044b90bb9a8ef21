"""SVDLinear: a linear layer whose update is written as a singular value decomposition.

    x Wᵀ + bias + lora_alpha / (r + 1e-5) · x (P Λ Q)ᵀ

P = ``lora_B`` [out, r], the diagonal of Λ = ``lora_E`` [r, 1], Q = ``lora_A`` [r, in]; one column
of P, one entry of Λ and one row of Q are a triplet. AdaLoRA (arXiv 2303.10512) §3.1, eq. 3; names,
shapes, scale and initialisation as in QingruZhang/AdaLoRA, ``loralib/adalora.py``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import LinearAdapter

# Added to the rank that the scale divides by, as the original does.
_EPSILON = 1e-5


class SVDLinear(LinearAdapter):
    """Linear layer with an update P Λ Q of initial rank ``r``.

    ``lora_A`` [r, in] and ``lora_B`` [out, r] are normal with standard deviation 0.02, ``lora_E``
    [r, 1] is zeros, ``ranknum`` [1] frozen and equal to ``r``. Arguments and other parameters are
    those of ``LinearAdapter``; a ``lora_alpha`` of zero or less means ``r``. The scale divides by
    ``ranknum``, the *initial* rank, also after pruning: published results depend on it.
    """

    FACTORS: ClassVar[dict[str, int | None]] = {"lora_A": 0, "lora_E": 0, "lora_B": 1}
    ZERO_FACTOR: ClassVar[str] = "lora_E"

    lora_E: nn.Parameter
    ranknum: nn.Parameter

    def _add_adapter(self) -> None:
        super()._add_adapter()
        self.lora_E = nn.Parameter(self.lora_A.new_zeros(self.r, 1))
        self.ranknum = nn.Parameter(self.lora_A.new_full((1,), float(self.r)), requires_grad=False)
        self.scaling = self.lora_alpha if self.lora_alpha > 0 else float(self.r)

    def reset_lora_parameters(self) -> None:
        """Draw the singular vectors from N(0, 0.02²); set the singular values to zero."""
        self._release_anchor()
        nn.init.zeros_(self.lora_E)
        nn.init.normal_(self.lora_A, mean=0.0, std=0.02)
        nn.init.normal_(self.lora_B, mean=0.0, std=0.02)

    def _product(self) -> tuple[Tensor, Tensor]:
        # The scale as a tensor, or every forward would wait for the device.
        return self.lora_A * (self.lora_E * (self.scaling / (self.ranknum + _EPSILON))), self.lora_B

    @property
    def scale(self) -> float:
        """What P Λ Q is multiplied by; reading it waits for the device."""
        return float(self.scaling) / (float(self.ranknum) + _EPSILON)

    @staticmethod
    def scale_for(lora_alpha: float, init_rank: float) -> float:
        """The scale of a layer that started with ``init_rank`` triplets."""
        return (lora_alpha if lora_alpha > 0 else init_rank) / (init_rank + _EPSILON)

    @staticmethod
    def alpha_for(scale: float, init_rank: float) -> float:
        """The ``lora_alpha`` that gives such a layer this scale."""
        return scale * (init_rank + _EPSILON)

    @property
    def initial_rank(self) -> int:
        """The rank that the scale divides by; reading it waits for the device."""
        return round(float(self.ranknum))

    def set_initial_rank(self, rank: int) -> None:
        """Take the scale of a layer that started with ``rank`` triplets and was pruned to ``r``."""
        self.ranknum.data.fill_(rank)
        if self.lora_alpha <= 0:
            self.scaling = float(rank)

    def triplet_values(self) -> Tensor:
        """The singular values without their signs, [r]."""
        return self.lora_E.detach().abs().flatten()

    @torch.no_grad()
    def set_product(self, up: Tensor, values: Tensor, down: Tensor) -> None:
        """P = ``up`` [out, r], Λ = ``values`` [r] and Q = ``down`` [r, in]."""
        self.lora_A.copy_(down)
        self.lora_E.copy_(values.unsqueeze(1))
        self.lora_B.copy_(up)

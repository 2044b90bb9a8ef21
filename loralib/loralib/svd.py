"""SVDLinear: a linear layer whose update is written as a singular value decomposition.

    x Wᵀ + bias + lora_alpha / (r + 1e-5) · x (P Λ Q)ᵀ

P = ``lora_B`` [out, r], the diagonal of Λ = ``lora_E`` [r, 1], Q = ``lora_A`` [r, in]; one column
of P, one entry of Λ and one row of Q are a triplet. AdaLoRA (arXiv 2303.10512) §3.1, eq. 3; names,
shapes, scale and initialisation as in QingruZhang/AdaLoRA, ``loralib/adalora.py``.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from .base import LinearAdapter, LoRALayer
from .lowrank import lowrank_linear


class SVDLinear(LinearAdapter, nn.Linear):
    """Linear layer with an update P Λ Q of initial rank ``r``.

    Parameters: ``weight`` [out, in] frozen ([in, out] if ``fan_in_fan_out``), ``bias`` [out],
    ``lora_A`` [r, in] and ``lora_B`` [out, r] normal with standard deviation 0.02, ``lora_E``
    [r, 1] zeros, ``ranknum`` [1] frozen and equal to ``r``. The scale divides by ``ranknum``, the
    *initial* rank, also after pruning: published results depend on it.

    Args:
        in_features: Size of the last input dimension.
        out_features: Size of the last output dimension.
        r: Initial rank; 0 gives an ordinary layer with a trainable weight.
        lora_alpha: Scale numerator; zero or less means ``r``.
        lora_dropout: Dropout probability on the adapter's input.
        fan_in_fan_out: Whether ``weight`` is stored as [in, out].
        merge_weights: Merge in ``eval()``.
        **kwargs: ``bias``, ``device``, ``dtype`` of ``nn.Linear``.
    """

    lora_E: nn.Parameter
    ranknum: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        self.fan_in_fan_out = fan_in_fan_out
        if r > 0:
            self._add_adapter()
        self.reset_parameters()
        if fan_in_fan_out:
            self.weight.data = self.weight.data.T

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        r: int,
        lora_alpha: float,
        lora_dropout: float = 0.0,
        merge_weights: bool = False,
    ) -> Self:
        """Put an adapter on an existing layer, sharing its parameters (nothing is copied).

        The adapter lies on the base's device; the base weight is frozen in both.
        """
        layer = cls(
            linear.in_features,
            linear.out_features,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            merge_weights=merge_weights,
            bias=linear.bias is not None,
            device="meta",
        )
        layer._adopt(linear, r)
        return layer

    def _add_adapter(self) -> None:
        self._add_factors((self.r, self.in_features), (self.out_features, self.r))
        self.lora_E = nn.Parameter(self.lora_A.new_zeros(self.r, 1))
        self.ranknum = nn.Parameter(self.lora_A.new_full((1,), float(self.r)), requires_grad=False)
        self.scaling = self.lora_alpha if self.lora_alpha > 0 else float(self.r)

    def reset_parameters(self) -> None:
        """Draw base and adapter anew."""
        nn.Linear.reset_parameters(self)
        if self.has_adapter:
            self.reset_lora_parameters()

    def reset_lora_parameters(self) -> None:
        """Draw the singular vectors from N(0, 0.02²); set the singular values to zero."""
        self._release_anchor()
        nn.init.zeros_(self.lora_E)
        nn.init.normal_(self.lora_A, mean=0.0, std=0.02)
        nn.init.normal_(self.lora_B, mean=0.0, std=0.02)

    def _factors(self) -> tuple[Tensor, Tensor]:
        # Λ Q with the scale in it; stays on the device.
        right = self.lora_A * (self.lora_E * (self.scaling / (self.ranknum + 1e-5)))
        return right, self.lora_B

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if self.merged or not self.has_adapter:
            return F.linear(x, self._base(), self.bias)
        return lowrank_linear(
            x, self._base(), self.bias, *self._update(), adapter_input=self.lora_dropout(x)
        )

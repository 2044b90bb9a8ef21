"""LoRA layers that stand in for torch's Linear, Embedding and Conv2d: W + (lora_alpha / r) · B A.

``LoRALayer`` holds what all of them share, including the merged state: with
``merge_weights=True`` a layer has base + update as its ``weight`` whenever it is in evaluation mode
(also through a parent's ``eval()``) and the base again, bit for bit, on ``train()``.
Hu et al., LoRA (arXiv 2106.09685), eq. 3; names, shapes and initialisation as in microsoft/LoRA and
QingruZhang/AdaLoRA, ``loralib/layers.py``. Departures from them are named where they are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import LinearAdapter, LoRALayer


class Linear(LinearAdapter):
    """Linear layer with a plain low-rank update (``frd``): x Wᵀ + bias + (lora_alpha/r)(x Aᵀ) Bᵀ.

    ``lora_A`` [r, in] is drawn as torch draws a Linear, ``lora_B`` [out, r] is zeros. Arguments and
    other parameters are those of ``LinearAdapter``; the scale is ``lora_alpha / r``.
    """


class MergedLinear(LinearAdapter):
    """One Linear holding several projections side by side, adapters on some of them.

    ``out_features`` splits into ``len(enable_lora)`` equal parts (query, key, value …); each
    enabled part has an update of its own of rank ``r``.
    Parameters, with n enabled parts of size s: ``lora_A`` [r·n, in], ``lora_B`` [s·n, r].
    Departure: with ``fan_in_fan_out`` the original padded the update along the wrong side.

    Arguments are those of ``LinearAdapter``, with ``r`` the rank of each part and ``enable_lora``
    saying which parts are adapted.

    Raises:
        ValueError: if ``enable_lora`` is empty or its length does not divide ``out_features``.
    """

    FACTORS: ClassVar[dict[str, int | None]] = {"lora_A": None, "lora_B": None}
    lora_rows: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,),
        fan_in_fan_out: bool = False,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        if len(enable_lora) == 0 or out_features % len(enable_lora) != 0:
            raise ValueError(
                f"the length of enable_lora must divide out_features, "
                f"got {len(enable_lora)} parts for out_features={out_features}"
            )
        # Before the layer is made: making the adapter asks for it.
        self.enable_lora = list(enable_lora)
        own = (r, lora_alpha, lora_dropout, fan_in_fan_out, merge_weights)
        super().__init__(in_features, out_features, *own, **kwargs)

    def _add_adapter(self) -> None:
        self.has_adapter = any(self.enable_lora)
        if not self.has_adapter:
            return
        enabled, size = sum(self.enable_lora), self.out_features // len(self.enable_lora)
        self._add_factors((self.r * enabled, self.in_features), (size * enabled, self.r))
        # Row numbers, not a boolean mask: indexing by a mask would wait for the device.
        parts = [part for part, on in enumerate(self.enable_lora) if on]
        rows = [row for part in parts for row in range(part * size, (part + 1) * size)]
        row_numbers = torch.tensor(rows, device=self.weight.device)
        self.register_buffer("lora_rows", row_numbers, persistent=False)

    def _parts(self) -> tuple[Tensor, Tensor]:
        """lora_A as [parts, r, in] and lora_B as [parts, size, r], scale in the former."""
        enabled = sum(self.enable_lora)
        down = (self.lora_A * self.scaling).view(enabled, self.r, self.in_features)
        return down, self.lora_B.view(enabled, -1, self.r)

    def delta_weight(self) -> Tensor:
        """The update of all parts as [out, in], zero in the rows of parts without an adapter."""
        self._require_adapter()
        down, up = self._parts()
        delta = torch.bmm(up, down).flatten(0, 1)
        nothing = delta.new_zeros(self.out_features, self.in_features)
        return nothing.index_copy(0, self.lora_rows, delta)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        base = F.linear(x, self.base_weight(), self.bias)
        if self.merged or not self.has_adapter:
            return base
        down, up = self._parts()
        hidden = F.linear(self.lora_dropout(x).to(down.dtype), down.flatten(0, 1))
        hidden = hidden.unflatten(-1, (up.shape[0], self.r))
        update = torch.einsum("...pr,psr->...ps", hidden, up.to(hidden.dtype)).flatten(-2)
        return base.index_add(-1, self.lora_rows, update.to(base.dtype))


class Embedding(LoRALayer, nn.Embedding):
    """Embedding with a low-rank update of the table: table + (lora_alpha/r) · (B A)ᵀ.

    Parameters: ``weight`` [num, dim] frozen, ``lora_A`` [r, num] zeros, ``lora_B`` [dim, r] normal.
    Departures: merging adds the transposed product (the original raised), and ``max_norm`` with
    an adapter is refused (the original renormalised lora_A in place at every look-up).

    Arguments are those of ``nn.Embedding`` and ``LoRALayer``.

    Raises:
        ValueError: if ``max_norm`` is given with ``r > 0``.
    """

    ZERO_FACTOR: ClassVar[str] = "lora_A"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        r: int = 0,
        lora_alpha: float = 1,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, 0.0, merge_weights)
        if r > 0:
            if self.max_norm is not None:
                raise ValueError(
                    f"max_norm={self.max_norm} rescales the frozen table at look-up and cannot be "
                    f"combined with an adapter (r={r}); leave max_norm out"
                )
            self._add_factors((r, num_embeddings), (embedding_dim, r))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw base and adapter anew; the update is zero afterwards."""
        nn.Embedding.reset_parameters(self)
        if self.has_adapter:
            nn.init.zeros_(self.lora_A)
            nn.init.normal_(self.lora_B)

    def delta_weight(self) -> Tensor:
        """(lora_alpha / r) · (B A)ᵀ in the table's layout [num, dim]."""
        self._require_adapter()
        return (self.lora_B @ self.lora_A).T * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Look up integer ids [...] and return [..., dim]."""
        base = nn.Embedding.forward(self, x)
        if self.merged or not self.has_adapter:
            return base
        how: Any = {"scale_grad_by_freq": self.scale_grad_by_freq, "sparse": self.sparse}
        rows = F.embedding(x, self.lora_A.T, self.padding_idx, **how)
        return base + F.linear(rows, self.lora_B * self.scaling).to(base.dtype)


class Conv2d(LoRALayer, nn.Conv2d):
    """Convolution with a square kernel k and a low-rank update of the unfolded kernel.

    Parameters: ``weight`` [out, in/groups, k, k] frozen, ``lora_A`` [r·k, in·k],
    ``lora_B`` [out/groups·k, r·k] zeros (as microsoft/LoRA has it; equal to AdaLoRA's for one
    group, where AdaLoRA's failed for several).
    Departure: ``lora_dropout`` acts on the adapter's input; the original ignored it.

    Arguments are those of ``nn.Conv2d``, with one int as ``kernel_size``, and of ``LoRALayer``.

    Raises:
        TypeError: if ``kernel_size`` is not an int.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        r: int = 0,
        lora_alpha: float = 1,
        lora_dropout: float = 0.0,
        merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:
        if not isinstance(kernel_size, int):
            raise TypeError(f"kernel_size must be one int (a square kernel), got {kernel_size!r}")
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, **kwargs)
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        if r > 0:
            rows = out_channels // self.groups * kernel_size
            self._add_factors((r * kernel_size, in_channels * kernel_size), (rows, r * kernel_size))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw base and adapter anew; the update is zero afterwards."""
        nn.Conv2d.reset_parameters(self)
        if self.has_adapter:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B)

    def delta_weight(self) -> Tensor:
        """(lora_alpha / r) · B A in the kernel's layout [out, in/groups, k, k]."""
        self._require_adapter()
        return (self.lora_B @ self.lora_A).view(self.weight.shape) * self.scaling

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [batch, in, height, width]."""
        if self.merged or not self.has_adapter:
            return nn.Conv2d.forward(self, x)
        delta = self.delta_weight()
        if isinstance(self.lora_dropout, nn.Identity) or not self.training:
            weight = (self.weight + delta).to(self.weight.dtype)
            return self._conv_forward(x, weight, self.bias)
        base = self._conv_forward(x, self.weight, self.bias)
        dropped = self.lora_dropout(x).to(delta.dtype)
        return base + self._conv_forward(dropped, delta, None).to(base.dtype)

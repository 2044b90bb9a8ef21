"""SVDLinear: a linear layer whose update is written as a singular value decomposition.

    x Wᵀ + bias + lora_alpha / (r + 1e-5) · x (P Λ Q)ᵀ

P = ``lora_B`` [out, r], the diagonal of Λ = ``lora_E`` [r, 1], Q = ``lora_A`` [r, in]; one column
of P, one entry of Λ and one row of Q are a triplet. AdaLoRA (arXiv 2303.10512) §3.1, eq. 3; names,
shapes, scale and initialisation as in QingruZhang/AdaLoRA, ``loralib/adalora.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import LinearAdapter, LoRALayer
from .lowrank import lowrank_linear

Adapted = TypeVar("Adapted", bound=LinearAdapter)

# Modules that only wrap another one: the names under which they hold it are not part of a path.
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_WRAPPER_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


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


def svd_layers(model: nn.Module) -> dict[str, SVDLinear]:
    """All SVD layers that carry an adapter, as ``adapted_layers``."""
    return adapted_layers(model, SVDLinear)


def adapted_layers(model: nn.Module, kind: type[Adapted]) -> dict[str, Adapted]:
    """All layers of one kind that carry an adapter, by module path, in the model's order.

    Found by type. A path does not show wrappers (DistributedDataParallel's ``module``,
    torch.compile's ``_orig_mod``, FSDP's and activation checkpointing's), so it is the same
    before and after wrapping. A layer that appears twice is listed once.
    """
    return dict(_walk(model, kind, "", set()))


def _walk(
    module: nn.Module, kind: type[Adapted], path: str, seen: set[nn.Module]
) -> Iterator[tuple[str, Adapted]]:
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, kind) and module.has_adapter:
        yield path, module
    for name, child in module.named_children():
        hidden = name in _WRAPPER_NAMES or (name == "module" and isinstance(module, _WRAPPERS))
        yield from _walk(child, kind, path if hidden else f"{path}.{name}".lstrip("."), seen)


def require_svd_layers(model: nn.Module, purpose: str) -> dict[str, SVDLinear]:
    """As ``svd_layers``, for callers that cannot do without.

    Raises:
        ValueError: if the model has none; ``purpose`` says who needed them.
    """
    layers = svd_layers(model)
    if not layers:
        raise ValueError(
            f"{purpose} needs at least one SVDLinear with r > 0, and this "
            f"{type(model).__name__} has none; replace its nn.Linear layers first, for example "
            "with SVDLinear.from_linear(layer, r=12, lora_alpha=16)"
        )
    return layers

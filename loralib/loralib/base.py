"""What every adapted layer has in common: its factors, merging, and saving without the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    # For the type checker a mix-in is a module. At run time it must not be one, or the original's
    # order of bases (``class Mine(nn.Linear, LoRALayer)``) would call its constructor twice.
    _ModuleMixin = nn.Module
else:
    _ModuleMixin = object


def adapter_dtype(weight: Tensor) -> torch.dtype:
    """Precision of an adapter beside ``weight``: float32 beside a half-precision base, else equal.

    Departure: the original gives the adapter the base's dtype. Steps of 1e-4 vanish in bfloat16.
    """
    return torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype


class LoRALayer(_ModuleMixin):
    """State and merging of an adapted layer; a mix-in placed before a torch module class.

    While merged, ``weight`` holds base + update and a copy of the base is kept aside. The state
    dict holds the base either way, so saving in evaluation mode and loading in training mode (or
    the reverse) never counts the update twice. Departure: the original saved the merged weight.
    To export plain merged weights, read ``weight`` after ``merge()``.

    Args:
        r: Rank of the update; 0 means no adapter.
        lora_alpha: Scale numerator.
        lora_dropout: Probability of dropping an input of the low-rank part.
        merge_weights: Merge in ``eval()``, unmerge in ``train()``.

    Raises:
        ValueError: if ``r`` is negative.
    """

    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_dropout: nn.Module
    _base_weight: Tensor | None

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        if r < 0:
            raise ValueError(f"the rank r must be 0 (no adapter) or more, got r={r}")
        self.r = r
        self.lora_alpha = lora_alpha
        # A module in both cases: the original's lambda could not be pickled.
        self.lora_dropout = nn.Dropout(p=lora_dropout) if lora_dropout > 0.0 else nn.Identity()
        self.merged = False
        self.merge_weights = merge_weights
        self._base_weight = None

    @property
    def has_adapter(self) -> bool:
        """Whether the layer carries low-rank factors."""
        return "lora_A" in self._parameters

    def _add_factors(self, a_shape: tuple[int, int], b_shape: tuple[int, int]) -> None:
        """Create lora_A and lora_B (zeros) on the base's device and freeze the base weight."""
        options: dict[str, Any] = {
            "device": self.weight.device,
            "dtype": adapter_dtype(self.weight),
        }
        self.lora_A = nn.Parameter(torch.zeros(a_shape, **options))
        self.lora_B = nn.Parameter(torch.zeros(b_shape, **options))
        self.weight.requires_grad = False

    def delta_weight(self) -> Tensor:
        """The update that merging adds, in the adapter's dtype; linear maps give it as [out, in].

        Raises:
            ValueError: if the layer has no adapter.
        """
        raise NotImplementedError

    def _stored_delta(self) -> Tensor:
        """The update in the layout of ``weight`` as stored."""
        return self.delta_weight()

    def _require_adapter(self) -> None:
        if not self.has_adapter:
            raise ValueError(
                f"this {type(self).__name__} has no adapter (r={self.r}), so it has no update"
            )

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update into ``weight``, keeping a copy of the base; merging twice equals once.

        The sum is taken in the wider of the two dtypes and rounded once.
        """
        if self.merged:
            return
        if self.has_adapter:
            base = self.weight.detach()
            self._base_weight = base.clone()
            # In place: parameters shared with another module, and addresses held by captured
            # graphs, stay valid.
            base.copy_(base + self._stored_delta())
        self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the base weight exactly as it was before ``merge()``."""
        if self._base_weight is not None:
            self.weight.detach().copy_(self._base_weight)
            self._base_weight = None
        self.merged = False

    def train(self, mode: bool = True) -> Self:
        """Switch mode; unmerge for training, merge for evaluation if ``merge_weights``.

        ``parent.eval()`` calls ``train(False)`` on its children, so this one method serves both.
        A layer merged by hand is unmerged as well: a merged adapter would receive no gradient.
        """
        super().train(mode)
        if mode:
            self.unmerge()
        elif self.merge_weights:
            self.merge()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # .to(), .half(), .cuda(): the copy of the base travels with the weight.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._base_weight is not None:
            self._base_weight = fn(self._base_weight)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._base_weight is not None:
            destination[prefix + "weight"] = self._base_weight

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        merged = self.merged
        self.unmerge()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[no-untyped-call]
        if merged:
            self.merge()


class LinearAdapter(LoRALayer):
    """What the linear layers share: orientation of the stored weight, and wrapping a layer."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    fan_in_fan_out: bool
    lora_anchor_A: Tensor
    lora_anchor_B: Tensor

    @property
    def is_anchored(self) -> bool:
        """Whether the update is measured from where ``anchor`` was called."""
        return "lora_anchor_A" in self._buffers

    @torch.no_grad()
    def anchor(self) -> None:
        """Take the update as it is now off every later one, so that it is zero now.

        PiSSA (arXiv 2404.02948) starts the factors from the principal part of the base weight and
        trains them beside the residual W - B₀A₀. Here the residual is never formed: the base keeps
        its weight, exact in any precision and the same for all who share it, and two buffers keep
        the part to take off, ``lora_anchor_A`` [r, in] with the scale in it and ``lora_anchor_B``
        [out, r]. With dropout on the adapter's input the difference alone is dropped, never the
        principal part.

        Raises:
            ValueError: if the layer has no adapter.
        """
        self._require_adapter()
        down, up = self._factors()
        self.register_buffer("lora_anchor_A", down.clone())
        self.register_buffer("lora_anchor_B", up.clone())

    def _release_anchor(self) -> None:
        self._buffers.pop("lora_anchor_A", None)
        self._buffers.pop("lora_anchor_B", None)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """The trained product as down [r, in], the scale in it, and up [out, r]."""
        raise NotImplementedError

    def _update(self) -> tuple[Tensor, Tensor]:
        """The update likewise; of rank 2r where it is anchored."""
        down, up = self._factors()
        if not self.is_anchored:
            return down, up
        down = torch.cat([down, self.lora_anchor_A])
        return down, torch.cat([up, -self.lora_anchor_B], dim=1)

    def delta_weight(self) -> Tensor:
        """The update as [out, in], in the adapter's dtype."""
        self._require_adapter()
        down, up = self._update()
        return up @ down

    def _base(self) -> Tensor:
        """Base (or merged) weight as [out, in], whatever way round it is stored."""
        return self.weight.T if self.fan_in_fan_out else self.weight

    def _stored_delta(self) -> Tensor:
        delta = self.delta_weight()
        return delta.T if self.fan_in_fan_out else delta

    def _add_adapter(self) -> None:
        """Create the adapter's parameters for ``self.r``."""
        raise NotImplementedError

    def reset_lora_parameters(self) -> None:
        """Draw the adapter's parameters anew; the update is zero afterwards."""
        raise NotImplementedError

    def _adopt(self, linear: nn.Linear, r: int) -> None:
        """Take over the parameters of ``linear`` and put an adapter of rank ``r`` beside them."""
        self.weight = linear.weight  # type: ignore[assignment]
        self.bias = linear.bias
        self.r = r
        if r > 0:
            self._add_adapter()
            self.reset_lora_parameters()
        self.train(linear.training)

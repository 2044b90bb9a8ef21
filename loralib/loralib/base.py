"""What every adapted layer says about itself, and merging and saving without the base.

``LoRALayer`` is for any kind of module. ``LinearAdapter`` is a whole linear layer but for the
parameters of its adapter: a new kind of linear layer names them in ``FACTORS``, makes them, resets
them, and gives their product; the rest (merging, pruning, storing, counting) asks for these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lowrank import lowrank_linear

if TYPE_CHECKING:
    # For the type checker a mix-in is a module. At run time it must not be one, or the original's
    # order of bases (``class Mine(nn.Linear, LoRALayer)``) would call its constructor twice.
    _ModuleMixin = nn.Module
else:
    _ModuleMixin = object


def adapter_dtype(weight: Tensor) -> torch.dtype:
    """Precision of an adapter on ``weight``: float32 on a half-precision base, else the same.

    Departure: the original gives the adapter the base's dtype. Steps of 1e-4 vanish in bfloat16.
    """
    return torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype


def replacing_loses(linear: nn.Module) -> str | None:
    """What is lost where another layer takes the place of ``linear``, as a clause; None: nothing.

    A subclass may compute something else, or be read by its parent without being called, as
    ``nn.MultiheadAttention`` reads its ``out_proj``.
    """
    if type(linear) is not nn.Linear:
        return f"a {type(linear).__name__} is a class of its own, and what it adds would be lost"
    if "forward" in vars(linear):
        return "this one was given a forward of its own, which would be lost"
    return None


class LoRALayer(_ModuleMixin):
    """State and merging of an adapted layer; a mix-in placed before a torch module class.

    While merged, ``weight`` is a parameter of the layer's own with base + update, and the base is
    kept aside untouched, because other modules may share it. The state dict holds the base either
    way, so saving in evaluation mode and loading in training mode (or the reverse) never counts the
    update twice. Departure: the original added into the base, and saved the merged weight. To
    export plain merged weights, read ``weight`` after ``merge()``.

    Args:
        r: Rank of the update; 0 means no adapter.
        lora_alpha: Scale numerator.
        lora_dropout: Probability of dropping an input of the low-rank part.
        merge_weights: Merge in ``eval()``, unmerge in ``train()``.

    Raises:
        ValueError: if ``r`` is negative.
    """

    #: Name -> dimension along which a factor's rank-one parts (triplets) lie; None where it has
    #: none. The names are those of trained parameters.
    FACTORS: ClassVar[Mapping[str, int | None]] = {"lora_A": 0, "lora_B": 1}
    #: The factor that starts at zero; where it is zero, so is the product.
    ZERO_FACTOR: ClassVar[str] = "lora_B"

    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_dropout: nn.Module
    scaling: float
    #: Whether the layer carries low-rank factors. An attribute, because what wraps a module may
    #: hold its parameters elsewhere: DataParallel, FSDP without original parameters, parametrize.
    has_adapter: bool = False
    #: The base while merged; no parameter of the layer meanwhile.
    _base_weight: nn.Parameter | None

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        if r < 0:
            raise ValueError(f"the rank r must be 0 (no adapter) or more, got r={r}")
        self.r, self.lora_alpha, self.has_adapter = r, lora_alpha, r > 0
        # A module in both cases: the original's lambda could not be pickled.
        self.lora_dropout = nn.Dropout(p=lora_dropout) if lora_dropout > 0.0 else nn.Identity()
        self.merged, self.merge_weights = False, merge_weights
        self._base_weight = None

    def factors(self) -> dict[str, nn.Parameter]:
        """The trained parameters of the adapter, by name; none where there is no adapter.

        Raises:
            ValueError: if the layer does not hold them itself.
        """
        names = list(self.FACTORS) if self.has_adapter else []
        for name in names:
            if name not in self._parameters:
                raise ValueError(
                    f"{name} is no parameter of its {type(self).__name__}: what wraps the layer "
                    "(nn.DataParallel, FSDP without use_orig_params, parametrize) holds it, where "
                    "nothing can allocate, count or store it"
                )
        return {name: self.get_parameter(name) for name in names}

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return float(self.scaling)

    def _add_factors(self, a_shape: tuple[int, int], b_shape: tuple[int, int]) -> None:
        """Create lora_A and lora_B (zeros) on the base's device and freeze the base weight."""
        self.scaling = self.lora_alpha / self.r
        device, dtype = self.weight.device, adapter_dtype(self.weight)
        self.lora_A = nn.Parameter(torch.zeros(a_shape, device=device, dtype=dtype))
        self.lora_B = nn.Parameter(torch.zeros(b_shape, device=device, dtype=dtype))
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
        """Put base + update in the place of ``weight``; merging twice equals once.

        The sum is rounded once, to the base's dtype.
        """
        if self.merged:
            return
        if self.has_adapter:
            base = self.weight
            merged = self.merged_weight().to(base.dtype)
            # Past torch, which would register a second parameter.
            object.__setattr__(self, "_base_weight", base)
            self.weight = nn.Parameter(merged, requires_grad=base.requires_grad)
        self.merged = True

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Base plus update in the layout of ``weight``, in the wider of their dtypes."""
        if self.merged or not self.has_adapter:
            return self.weight.detach()
        return self.weight.detach() + self._stored_delta()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the base weight, the very parameter that it was before ``merge()``."""
        if self._base_weight is not None:
            self.weight, self._base_weight = self._base_weight, None
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
        # .to(), .half(), .cuda(): it is the base that moves.
        merged = self.merged
        self.unmerge()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if merged:
            self.merge()
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if (base := self._base_weight) is not None:
            destination[prefix + "weight"] = base if keep_vars else base.detach()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        merged = self.merged
        self.unmerge()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[no-untyped-call]
        if merged:
            self.merge()


class LinearAdapter(LoRALayer, nn.Linear):
    """A linear layer with an adapter; the base of every kind of it.

    Parameters: ``weight`` [out, in] frozen ([in, out] if ``fan_in_fan_out``), ``bias`` [out], and
    those of ``FACTORS``. A subclass defines ``_add_adapter``, ``reset_lora_parameters`` and
    ``_product``, and overrides ``scale_for`` and ``alpha_for`` together with ``scale``.

    Args:
        in_features: as ``nn.Linear``, like ``out_features``, ``bias``, ``device`` and ``dtype``.
        r: as ``LoRALayer``; 0 gives an ordinary layer with a trainable weight.
        lora_alpha: as ``LoRALayer``; ``scale_for`` says what it comes to.
        fan_in_fan_out: whether ``weight`` is stored as [in, out].
    """

    fan_in_fan_out: bool
    lora_anchor_A: Tensor
    lora_anchor_B: Tensor

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
        **options: Any,
    ) -> Self:
        """Put an adapter on an existing layer, sharing its parameters and hooks; nothing is copied.

        The adapter lies on the base's device; the base weight is frozen in both.

        Raises:
            ValueError: if ``linear`` is of a subclass or has a forward of its own, which the new
                layer would lose.
        """
        if (loss := replacing_loses(linear)) is not None:
            raise ValueError(f"from_linear takes the place of a plain nn.Linear; {loss}")
        layer = cls(
            linear.in_features,
            linear.out_features,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            merge_weights=merge_weights,
            bias=linear.bias is not None,
            device="meta",
            **options,
        )
        layer.weight = linear.weight  # type: ignore[assignment]
        layer.bias = linear.bias
        for name, value in vars(linear).items():
            # The very containers, by which a handle removes its hook.
            if "_hook" in name:
                setattr(layer, name, value)
        layer.r, layer.has_adapter = r, r > 0
        if r > 0:
            layer._add_adapter()
        if layer.has_adapter:
            layer.reset_lora_parameters()
        return layer.train(linear.training)

    # ---- what a kind of layer defines ----

    def _add_adapter(self) -> None:
        """Create the adapter's parameters for ``self.r``."""
        self._add_factors((self.r, self.in_features), (self.out_features, self.r))

    def reset_lora_parameters(self) -> None:
        """Draw lora_A as torch draws a Linear's weight; set lora_B to zero: no update."""
        self._release_anchor()
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def _product(self) -> tuple[Tensor, Tensor]:
        """The trained product as down [r, in], the scale in it, and up [out, r]."""
        return self.lora_A * self.scaling, self.lora_B

    @staticmethod
    def scale_for(lora_alpha: float, init_rank: float) -> float:
        """The scale of a layer of this kind that started with ``init_rank`` triplets."""
        return lora_alpha / init_rank

    @staticmethod
    def alpha_for(scale: float, init_rank: float) -> float:
        """The ``lora_alpha`` that gives such a layer this scale."""
        return scale * init_rank

    # ---- triplets ----

    @property
    def initial_rank(self) -> int:
        """The rank that the scale divides by; ``r`` is smaller where only survivors were kept."""
        return round(self.lora_alpha / self.scaling) if self.scaling else self.r

    def set_initial_rank(self, rank: int) -> None:
        """Take the scale of a layer that started with ``rank`` triplets and was pruned to ``r``."""
        self.scaling = self.lora_alpha / rank

    @property
    def triplet_size(self) -> int:
        """Parameters of one triplet."""
        ranked = [f for name, f in self.factors().items() if self.FACTORS[name] is not None]
        return sum(factor.numel() // self.r for factor in ranked)

    def triplet_values(self) -> Tensor:
        """How large each triplet is, [r]; 0 exactly where it adds nothing."""
        return self.lora_A.detach().norm(dim=1) * self.lora_B.detach().norm(dim=0)

    @torch.no_grad()
    def set_product(self, up: Tensor, values: Tensor, down: Tensor) -> None:
        """Make up · diag(values) · down, [out, r], [r] and [r, in], the product before scaling."""
        root = values.sqrt()
        self.lora_A.copy_(root.unsqueeze(1) * down)
        self.lora_B.copy_(up * root)

    # ---- the update, measured from an anchor or not ----

    @property
    def is_anchored(self) -> bool:
        """Whether the update is measured from where ``anchor`` was called."""
        return "lora_anchor_A" in self._buffers

    @torch.no_grad()
    def anchor(self) -> None:
        """Take the update as it is now off every later one, so that it is zero now.

        PiSSA (arXiv 2404.02948) starts the factors from the principal part of the base weight and
        trains them with the residual W - B₀A₀. Here the residual is never formed: the base keeps
        its weight, exact in any precision and the same for all who share it, and two buffers keep
        the part to take off, ``lora_anchor_A`` [r, in] with the scale in it and ``lora_anchor_B``
        [out, r]. With dropout on the adapter's input the difference alone is dropped, never the
        principal part.

        Raises:
            ValueError: if the layer has no adapter.
        """
        self._require_adapter()
        down, up = self._product()
        self.register_buffer("lora_anchor_A", down.clone())
        self.register_buffer("lora_anchor_B", up.clone())

    def _release_anchor(self) -> None:
        self._buffers.pop("lora_anchor_A", None)
        self._buffers.pop("lora_anchor_B", None)

    def _update(self) -> tuple[Tensor, Tensor]:
        """The update as down and up, the scale in it; of rank 2r where it is anchored."""
        down, up = self._product()
        if not self.is_anchored:
            return down, up
        down = torch.cat([down, self.lora_anchor_A])
        return down, torch.cat([up, -self.lora_anchor_B], dim=1)

    @torch.no_grad()
    def product_is_zero(self) -> bool:
        """Whether the factors add nothing to whatever base; reading it waits for the device."""
        down, up = self._product()
        if self.is_anchored:
            return torch.equal(down, self.lora_anchor_A) and torch.equal(up, self.lora_anchor_B)
        return not bool((up @ down).any())

    def delta_weight(self) -> Tensor:
        """The update as [out, in], in the adapter's dtype."""
        self._require_adapter()
        down, up = self._update()
        return up @ down

    def _stored_delta(self) -> Tensor:
        delta = self.delta_weight()
        return delta.T if self.fan_in_fan_out else delta

    # ---- storing ----

    @property
    def stored_rank(self) -> int:
        """The initial rank as it is stored: twice as much where an anchor is stored with it."""
        return self.initial_rank * (2 if self.is_anchored else 1)

    @property
    def stored_alpha(self) -> float:
        """The ``lora_alpha`` that gives ``stored_rank`` the scale of this layer."""
        if not self.is_anchored:
            return float(self.lora_alpha)
        return self.alpha_for(self.scale, self.stored_rank)

    @torch.no_grad()
    def stored_factors(self, kept: Tensor | None = None) -> dict[str, Tensor]:
        """The factors of a layer without anchor that computes what this one computes.

        Args:
            kept: positions of the triplets to store, int64; None for all.

        Returns:
            Name -> factor of the triplets kept, followed by what the anchor takes off.
        """
        stored: dict[str, Tensor] = {}
        for name, factor in self.factors().items():
            dim, tensor = self.FACTORS[name], factor.detach()
            if kept is not None and dim is not None:
                tensor = tensor.index_select(dim, kept)
            if self.is_anchored and dim is not None:
                tensor = torch.cat([tensor, self._anchor_factor(name)], dim)
            stored[name] = tensor
        return stored

    def _anchor_factor(self, name: str) -> Tensor:
        """What the anchor takes off, as that factor: lora_E is one, and the sign in one of them."""
        if name == "lora_A":
            part = self.lora_anchor_A / self.scale
        elif name == "lora_B":
            part = self.lora_anchor_B
        else:
            part = self.lora_anchor_A.new_ones(len(self.lora_anchor_A), 1)
        return -part if name == self.ZERO_FACTOR else part

    # ---- the layer itself ----

    def reset_parameters(self) -> None:
        """Draw base and adapter anew."""
        nn.Linear.reset_parameters(self)
        if self.has_adapter:
            self.reset_lora_parameters()

    def base_weight(self) -> Tensor:
        """Base (or merged) weight as [out, in], whatever way round it is stored."""
        return self.weight.T if self.fan_in_fan_out else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if self.merged or not self.has_adapter:
            return F.linear(x, self.base_weight(), self.bias)
        base, dropped = self.base_weight(), self.lora_dropout(x)
        return lowrank_linear(x, base, self.bias, *self._update(), adapter_input=dropped)

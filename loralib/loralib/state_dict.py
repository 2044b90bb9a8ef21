"""Which parameters train, and the dictionary of adapter parameters to save (microsoft/LoRA)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .base import LoRALayer

_BIAS = ("none", "all", "lora_only")


def _check_bias(bias: str) -> None:
    if bias not in _BIAS:
        raise ValueError(f"bias must be one of {', '.join(_BIAS)}, got {bias!r}")


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Freeze every parameter but the adapters' (names with ``lora_``).

    Args:
        model: changed in place; parameters that are frozen already stay so.
        bias: ``none``, ``all`` (every bias trains too) or ``lora_only`` (those of adapted layers).

    Raises:
        ValueError: if ``bias`` is none of these.
    """
    _check_bias(bias)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.requires_grad = bias == "all" and "bias" in name
    if bias == "lora_only":
        for module in model.modules():
            own = getattr(module, "bias", None)
            if isinstance(module, LoRALayer) and isinstance(own, nn.Parameter):
                own.requires_grad = True


def lora_state_dict(model: nn.Module, bias: str = "none") -> dict[str, Tensor]:
    """The adapter parameters of ``model`` by name, and biases as in the function above.

    Raises:
        ValueError: if ``bias`` is unknown.
    """
    _check_bias(bias)
    state = model.state_dict()
    adapted = {name for name in state if "lora_" in name}
    if bias == "all":
        adapted |= {name for name in state if "bias" in name}
    elif bias == "lora_only":
        biases = {name.split("lora_")[0] + "bias" for name in adapted}
        adapted |= biases & set(state)
    return {name: tensor for name, tensor in state.items() if name in adapted}


def load_lora_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what ``lora_state_dict`` gave; the base is left alone.

    Raises:
        ValueError: if the dictionary lacks an adapter parameter of the model or has one too many.
    """
    own = set(lora_state_dict(model))
    stored = {name for name in state if "lora_" in name}
    if own != stored:
        missing, extra = sorted(own - stored), sorted(stored - own)
        raise ValueError(
            f"the state dict does not fit the model's adapters: {len(missing)} are missing "
            f"(first: {missing[:1]}), {len(extra)} are unknown (first: {extra[:1]})"
        )
    model.load_state_dict(dict(state), strict=False)

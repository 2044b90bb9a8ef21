"""Which parameters train: the method's own and the head; all others get no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

import loralib
from adalora.adapters.bottleneck import Bottleneck
from adalora.adapters.head import is_head
from adalora.errors import UserError

__all__ = ["METHODS", "Method", "adapter_names", "freeze_base", "head_names"]

Method = Literal["lora", "bottleneck", "bitfit", "full"]
METHODS = ("lora", "bottleneck", "bitfit", "full")

_FACTORS = ("lora_A", "lora_B", "lora_E", "lora_magnitude")


def head_names(model: nn.Module) -> list[str]:
    """Names of the parameters of pooler and classifier, which every method trains whole."""
    return [name for name, _ in model.named_parameters() if is_head(model, name)]


def adapter_names(model: nn.Module, method: str) -> list[str]:
    """Names of the parameters that ``lora`` or ``bottleneck`` added to the model."""
    if method == "lora":
        return [
            f"{path}.{factor}"
            for path, module in model.named_modules()
            if isinstance(module, loralib.LoRALayer)
            for factor in _FACTORS
            if factor in module._parameters
        ]
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, Bottleneck)
        for name, _ in module.named_parameters()
    ]


def freeze_base(model: nn.Module, *, train: Method | Sequence[Method]) -> list[str]:
    """Let the method's parameters and the head train, and freeze the rest.

    Args:
        model: with its adapters already on it.
        train: ``lora``, ``bottleneck`` (their parameters), ``bitfit`` (every bias of the encoder,
            arXiv 2106.10199), ``full`` (everything); several may be combined.

    Returns:
        Names of the parameters that train, in model order.

    Raises:
        UserError: if a method is unknown, or its adapters are not on the model.
    """
    methods: list[str] = [train] if isinstance(train, str) else list(train)
    if not methods:
        raise UserError(f"No method to train was named; choose from {', '.join(METHODS)}.")
    trained = set(head_names(model))
    for method in methods:
        trained |= _method_names(model, method)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if name not in trained:
            parameter.grad = None
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _method_names(model: nn.Module, method: str) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    if method == "full":
        # ``ranknum`` is a count that the original stores as a parameter; nothing trains it.
        return {name for name in names if name.rpartition(".")[2] != "ranknum"}
    if method == "bitfit":
        # DeBERTa v1 calls two of them q_bias and v_bias.
        return {name for name in names if name.endswith("bias") and not is_head(model, name)} - set(
            adapter_names(model, "bottleneck")
        )
    if method in ("lora", "bottleneck"):
        found = set(adapter_names(model, method))
        if not found:
            raise UserError(
                f"The model has no {method} adapters to train; call "
                f"adalora.adapters.add_{method} first."
            )
        return found
    raise UserError(f"Unknown method {method!r}; choose from {', '.join(METHODS)}.")

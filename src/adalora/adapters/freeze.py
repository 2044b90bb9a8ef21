"""Which parameters train: the method's own and the head; all others get no gradient."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from adalora.adapters.head import head_names, is_head
from adalora.adapters.kinds import METHODS, PARTS, Method
from adalora.adapters.peft_method import is_peft
from adalora.errors import UserError


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
        if method not in METHODS:
            raise UserError(f"Unknown method {method!r}; choose from {', '.join(METHODS)}.")
        found = PARTS[method].parameters(model)
        if PARTS[method].added and not found:
            raise UserError(
                f"The model has no {method} adapters to train; call "
                f"adalora.adapters.add_{method} first."
            )
        trained |= set(found)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if name not in trained:
            parameter.grad = None
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def trained_parts(model: nn.Module) -> tuple[str, ...]:
    """The methods that ``freeze_base`` was called with, read off what requires a gradient."""
    if is_peft(model):
        return ("peft",)
    training = {name for name, p in model.named_parameters() if p.requires_grad}
    parts = []
    for name in ("lora", "bottleneck"):
        added = set(PARTS[name].parameters(model))
        if added & training:
            parts.append(name)
        training -= added
    base = [name for name in training if not is_head(model, name)]
    if base:
        parts.append("bitfit" if all(name.endswith("bias") for name in base) else "full")
    return tuple(parts)

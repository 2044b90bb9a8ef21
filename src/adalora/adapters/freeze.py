"""Which parameters train, the others being frozen, and how many are left after pruning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from adalora.adapters.head import head_names, is_head
from adalora.adapters.kinds import METHODS, PARTS, Method, lora_layers
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
        if not found:
            raise UserError(
                f"{PARTS[method].title} cannot train: {type(model).__name__} has none. Take "
                "another method, such as --apply_lora."
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


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of one model.

    ``adapter_initial`` counts what trains outside the head; ``adapter_kept`` the same after
    pruning; ``head`` the pooler and the classifier; ``trainable`` all that requires a gradient;
    ``total`` the whole model as it is in memory.
    """

    adapter_initial: int
    adapter_kept: int
    head: int
    trainable: int
    total: int


def count_parameters(
    model: nn.Module, rank_pattern: Mapping[str, int] | None = None
) -> ParameterCounts:
    """Count the parameters of a model that ``freeze_base`` has prepared.

    A triplet of an [out, in] matrix is ``in + out + 1`` parameters: a row of Q, a column of P and
    a singular value. Departure: the original's log counts ``in + out``. A doublet of plain LoRA
    has no singular value.

    Args:
        model: with its adapters, and frozen where it does not train.
        rank_pattern: ``<module>.lora_E`` -> triplets kept; None if nothing was pruned.

    Raises:
        UserError: if the pattern names a matrix that the model does not have, or keeps more
            triplets than it has.
    """
    head = trainable = total = initial = 0
    for name, parameter in model.named_parameters():
        # Counts that are stored as parameters (PEFT's end in the adapter's name), and the head that
        # PEFT keeps as it was before.
        if {"ranknum", "original_module"} & set(name.split(".")):
            continue
        total += parameter.numel()
        in_head = is_head(model, name)
        head += parameter.numel() if in_head else 0
        if parameter.requires_grad:
            trainable += parameter.numel()
            initial += 0 if in_head else parameter.numel()
    kept = initial - _pruned(model, rank_pattern or {})
    return ParameterCounts(
        adapter_initial=initial, adapter_kept=kept, head=head, trainable=trainable, total=total
    )


def _pruned(model: nn.Module, rank_pattern: Mapping[str, int]) -> int:
    triplets = _triplets(model)
    pruned = 0
    for key, rank in rank_pattern.items():
        if key not in triplets:
            raise UserError(f"The rank pattern names {key!r}, and the model has no such matrix.")
        most, size = triplets[key]
        if not 0 <= rank <= most:
            raise UserError(f"The rank pattern keeps {rank} triplets of {key!r}, of {most}.")
        pruned += (most - rank) * size
    return pruned


def _triplets(model: nn.Module) -> dict[str, tuple[int, int]]:
    """``<module>.lora_E`` -> triplets there, parameters of one; of our layers and of PEFT's."""
    found = {
        f"{path}.lora_E": (layer.r, layer.triplet_size)
        for path, layer in lora_layers(model).items()
    }
    for path, module in model.named_modules():
        if isinstance(getattr(module, "lora_E", None), nn.ParameterDict):
            layer: Any = module
            rank, inputs = layer.lora_A["default"].shape
            size = inputs + layer.lora_B["default"].shape[0] + 1
            found[f"{path.removeprefix('base_model.model.')}.lora_E"] = (rank, size)
    return found

"""How many parameters a model has, and how many of them train or are left after pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from adalora.adapters.head import is_head
from adalora.adapters.kinds import lora_layers
from adalora.errors import UserError


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

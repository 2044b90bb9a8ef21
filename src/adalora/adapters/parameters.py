"""Parameter counts: the adapter as initialised, the adapter as finally kept, and the head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

import loralib
from adalora.adapters.head import is_head
from adalora.errors import UserError

__all__ = ["ParameterCounts", "count_parameters"]


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
        if name.rpartition(".")[2] == "ranknum":
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
    layers = {
        f"{path}.lora_E": module
        for path, module in model.named_modules()
        if isinstance(module, loralib.SVDLinear | loralib.Linear) and module.has_adapter
    }
    pruned = 0
    for key, rank in rank_pattern.items():
        layer = layers.get(key)
        if layer is None:
            raise UserError(f"The rank pattern names {key!r}, and the model has no such matrix.")
        if not 0 <= rank <= layer.r:
            raise UserError(f"The rank pattern keeps {rank} triplets of {key!r}, of {layer.r}.")
        values = 1 if isinstance(layer, loralib.SVDLinear) else 0
        pruned += (layer.r - rank) * (layer.in_features + layer.out_features + values)
    return pruned

"""The low-rank updates of a model, taken off its layers: up · diag(values) · down · scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import loralib
from adalora.checkpoints import Artefact
from adalora.checkpoints.description import LoRASettings
from adalora.errors import UserError

__all__ = ["LowRank", "low_rank_updates", "require_lora"]


@dataclass(frozen=True)
class LowRank:
    """One matrix's update, ``scale * up @ diag(values) @ down``.

    ``down`` [r, in], ``up`` [out, r], ``values`` [r, 1], or None for plain LoRA, where they are 1;
    r is what pruning left, possibly 0.
    """

    down: Tensor
    up: Tensor
    values: Tensor | None
    scale: float
    #: DoRA's norm of each output [out]; None for an update that is no more than low-rank.
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Triplets that are there."""
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The update [out, in]."""
        down = self.down if self.values is None else self.down * self.values
        return self.up @ down * self.scale


def require_lora(artefact: Artefact) -> LoRASettings:
    """The LoRA settings of an artefact that has them, which ``refusals`` make sure of."""
    if artefact.description.lora is None:
        raise UserError("This run has no LoRA adapters.")
    return artefact.description.lora


def low_rank_updates(artefact: Artefact) -> dict[str, LowRank]:
    """Path -> update of every matrix that was adapted, those of rank 0 included, on the CPU."""
    settings = require_lora(artefact)
    return {
        path: _update(artefact.model.get_submodule(path), settings) for path in settings.targets
    }


def _update(layer: Any, settings: LoRASettings) -> LowRank:
    # The original's scale: by the initial rank, also after pruning.
    if settings.lora_type == "svd":
        alpha = settings.lora_alpha if settings.lora_alpha > 0 else float(settings.init_rank)
        scale = alpha / (settings.init_rank + 1e-5)
    else:
        scale = settings.lora_alpha / settings.init_rank
    if isinstance(layer, loralib.SVDLinear):
        return LowRank(_plain(layer.lora_A), _plain(layer.lora_B), _plain(layer.lora_E), scale)
    if isinstance(layer, loralib.Linear):
        magnitude = None
        if isinstance(layer, loralib.DoRALinear):
            magnitude = _plain(layer.lora_magnitude)
        return LowRank(_plain(layer.lora_A), _plain(layer.lora_B), None, scale, magnitude)
    # Pruned to rank 0: the base's plain layer is in its place.
    inputs, outputs = layer.in_features, layer.out_features
    values = torch.zeros(0, 1) if settings.lora_type == "svd" else None
    return LowRank(torch.zeros(0, inputs), torch.zeros(outputs, 0), values, scale)


def _plain(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().cpu()

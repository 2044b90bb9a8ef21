"""The low-rank updates of a model, taken off its layers: up · diag(values) · down · scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from adalora.adapters.kinds import LORA_KINDS, lora_layers
from adalora.artefact.description import LoRASettings
from adalora.artefact.reader import Artefact
from adalora.errors import UserError


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
    """The LoRA settings of an artefact that has them, as every run whose export was not refused."""
    if artefact.description.lora is None:
        raise UserError("This run has no LoRA adapters.")
    return artefact.description.lora


def low_rank_updates(artefact: Artefact) -> dict[str, LowRank]:
    """Path -> update of every matrix that was adapted, those of rank 0 included, on the CPU."""
    settings = require_lora(artefact)
    kind = LORA_KINDS[settings.lora_type].layer
    scale = kind.scale_for(settings.lora_alpha, settings.init_rank)
    layers = lora_layers(artefact.model)
    updates = {}
    for path in settings.targets:
        if path in layers:
            factors = {n: p.detach().cpu() for n, p in layers[path].factors().items()}
        else:  # pruned to rank 0: the base's plain layer is in its place
            linear = cast(nn.Linear, artefact.model.get_submodule(path))
            sizes = {"lora_A": (0, linear.in_features), "lora_B": (linear.out_features, 0)}
            sizes |= {"lora_E": (0, 1)} if "lora_E" in kind.FACTORS else {}
            factors = {name: torch.zeros(size) for name, size in sizes.items()}
        updates[path] = LowRank(
            down=factors["lora_A"],
            up=factors["lora_B"],
            values=factors.get("lora_E"),
            scale=scale,
            magnitude=factors.get("lora_magnitude"),
        )
    return updates

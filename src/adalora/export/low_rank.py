"""The low-rank updates of a model (up · diag(values) · down · scale), and the original's file.

``loralib`` is the original code's ``lora_state_dict`` in one file of ``torch.save``: a pickle file,
because the original reads no other; it holds tensors alone and opens with ``weights_only=True``.
The factors have the shapes of the initial rank, as the original builds its layers: triplets that
were pruned are zeros. Pooler and classifier are in the file too: the original's
``load_state_dict(..., strict=False)`` takes them, and without them nothing is predicted.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from adalora.adapters.head import head_names
from adalora.adapters.kinds import LORA_KINDS, lora_layers
from adalora.adapters.lora import add_lora
from adalora.adapters.merge import base_without_head
from adalora.artefact.description import LoRASettings
from adalora.artefact.reader import Artefact
from adalora.artefact.warm_start import load_lora
from adalora.errors import UserError
from adalora.export.verify import predictor
from adalora.pretrained import deberta

if TYPE_CHECKING:
    from adalora.export.formats import Predict


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


class StateDict:
    """One file for the original's ``load_state_dict``."""

    def write(self, artefact: Artefact, target: Path) -> None:
        """The factors of every target, padded to the initial rank, and the head."""
        rank = require_lora(artefact).init_rank
        tensors: dict[str, Tensor] = {}
        for path, update in low_rank_updates(artefact).items():
            tensors[f"{path}.lora_A"] = _padded(update.down, rank, dim=0)
            if update.values is not None:
                tensors[f"{path}.lora_E"] = _padded(update.values, rank, dim=0)
            tensors[f"{path}.lora_B"] = _padded(update.up, rank, dim=1)
        state = artefact.model.state_dict()
        tensors |= {name: state[name].cpu().clone() for name in head_names(artefact.model)}
        # By way of memory: what a full disk makes of torch.save is an error about positions.
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        target.write_bytes(buffer.getvalue())

    def read(self, artefact: Artefact, target: Path) -> Predict:
        """As ``--lora_path`` reads it, into layers of the initial rank."""
        settings = require_lora(artefact)
        model = base_without_head(artefact.model)
        if artefact.description.model_type == "deberta-v2":
            bypass = artefact.description.position_query_bypass
            deberta.patch(model, position_query_bypass=bypass)
        add_lora(
            model,
            lora_type=settings.lora_type,
            targets=["re:" + "|".join(re.escape(path) for path in settings.targets)],
            init_rank=settings.init_rank,
            lora_alpha=settings.lora_alpha,
        )
        load_lora(model, target)
        return predictor(model)

    def usage(self, artefact: Artefact, target: Path) -> str:
        """The flags that build layers of the same shape and scale, which the file does not say."""
        settings = require_lora(artefact)
        flags = (
            f"--apply_lora --lora_type {settings.lora_type} --lora_r {settings.init_rank} "
            f"--lora_alpha {settings.lora_alpha:g} --lora_path {target}"
        )
        if artefact.description.model_type == "deberta-v2" and not (
            artefact.description.position_query_bypass
        ):
            flags += (
                "\n(the original's DeBERTa leaves the adapter out of the positional query; it "
                "computes the same only for runs trained with --position_query_bypass)"
            )
        return flags


def _padded(tensor: Tensor, rank: int, *, dim: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = rank - shape[dim]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim)

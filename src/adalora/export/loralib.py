"""``loralib``: the original code's ``lora_state_dict`` in one file of ``torch.save``.

A pickle file, because the original reads no other; it holds tensors alone and opens with
``weights_only=True``. The factors have the shapes of the initial rank, as the original builds its
layers: triplets that were pruned are zeros. Pooler and classifier are in the file too: the
original's ``load_state_dict(..., strict=False)`` takes them, and without them nothing is predicted.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adalora.adapters.head import head_names
from adalora.adapters.lora import add_lora
from adalora.adapters.merge import base_without_head
from adalora.artefact.reader import Artefact
from adalora.artefact.warm_start import load_lora
from adalora.export.low_rank import low_rank_updates, require_lora
from adalora.export.verify import predictor
from adalora.pretrained import deberta

if TYPE_CHECKING:
    from adalora.export.formats import Predict


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

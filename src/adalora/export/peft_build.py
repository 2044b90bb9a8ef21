"""Putting what an adapter folder of PEFT holds on its base, as layers of ours.

A LoRA adapter whose matrices share rank and scale stays plain LoRA (``frd``), its factors bit for
bit. Otherwise, and for AdaLoRA, it becomes ``svd``: that form keeps a rank per matrix, and what
a matrix's scale has beyond the common one goes into its singular values.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adalora.adapters import add_lora, freeze_base
from adalora.adapters.head import is_head
from adalora.adapters.lora import LoRAType
from adalora.checkpoints.files import listed
from adalora.errors import UserError
from adalora.export.peft_source import PeftAdapter
from adalora.export.triplets import LowRank

__all__ = ["add_products", "build"]


@torch.no_grad()
def build(model: PreTrainedModel, adapter: PeftAdapter) -> dict[str, int]:
    """Put adapters and head on ``model``, a base from ``load_classifier``.

    Returns:
        The rank pattern, ``<module>.lora_E`` -> triplets; empty for plain LoRA.

    Raises:
        UserError: if the adapter does not fit the base, or something of the head is in neither.
    """
    _check(model, adapter)
    _fill_head(model, adapter)
    updates = {path: u for path, u in adapter.updates.items() if not is_head(model, path)}
    if not updates:
        raise UserError(f"{adapter.source} adapts the head alone, and nothing of the encoder.")
    form, rank, alpha = _form(adapter, list(updates.values()))
    add_lora(
        model,
        lora_type=form,
        targets=["re:" + "|".join(re.escape(path) for path in updates)],
        init_rank=rank,
        lora_alpha=alpha,
        lora_dropout=adapter.lora_dropout,
    )
    freeze_base(model, train="lora")
    for path, update in updates.items():
        layer, kept = model.get_submodule(path), update.rank
        layer.get_parameter("lora_A")[:kept] = update.down
        layer.get_parameter("lora_B")[:, :kept] = update.up
        if form == "svd":
            values = torch.ones(kept, 1) if update.values is None else update.values
            beyond = update.scale / (alpha / (rank + 1e-5))
            layer.get_parameter("lora_E")[:kept] = values * beyond
    if form == "frd":
        return {}
    return {f"{path}.lora_E": update.rank for path, update in updates.items()}


@torch.no_grad()
def add_products(model: PreTrainedModel, adapter: PeftAdapter) -> PreTrainedModel:
    """Add every update into its weight: what the adapter computes, worked out without layers."""
    for name, tensor in adapter.others.items():
        model.get_parameter(name).copy_(tensor)
    for path, update in adapter.updates.items():
        model.get_parameter(f"{path}.weight").add_(update.delta())
    return model


def _form(adapter: PeftAdapter, updates: list[LowRank]) -> tuple[LoRAType, int, float]:
    """Type, initial rank and alpha of the layers that can hold ``updates``."""
    rank = max(update.rank for update in updates)
    if adapter.peft_type == "LORA" and len({(u.rank, u.scale) for u in updates}) == 1:
        return "frd", rank, updates[0].scale * rank
    if adapter.peft_type == "ADALORA":
        rank = max(rank, adapter.init_rank)
    # The largest scale is the common one: where all are equal, nothing is left to the values.
    largest = max(abs(update.scale) for update in updates)
    return "svd", rank, round(largest * (rank + 1e-5), 6) or 1.0


def _check(model: PreTrainedModel, adapter: PeftAdapter) -> None:
    modules = dict(model.named_modules())
    for path, update in adapter.updates.items():
        layer = modules.get(path)
        if not isinstance(layer, nn.Linear):
            found = "nothing" if layer is None else type(layer).__name__
            raise UserError(
                f"{adapter.source} adapts {path}, and the base model has {found} there instead of "
                "a linear layer; name the base that it was trained on."
            )
        shape = torch.Size((update.up.shape[0], update.down.shape[1]))
        _check_shape(f"a matrix {path}", shape, layer.weight, adapter)
    head = {name: p for name, p in model.named_parameters() if is_head(model, name)}
    for name, tensor in adapter.others.items():
        if name not in head:
            raise UserError(
                f"{adapter.source} holds {name}, which is neither an adapter nor part of the head "
                "(pooler and classifier) of the base model; such an adapter cannot be imported."
            )
        _check_shape(name, tensor.shape, head[name], adapter)


def _check_shape(name: str, shape: torch.Size, expected: Tensor, adapter: PeftAdapter) -> None:
    if shape != expected.shape:
        raise UserError(
            f"{adapter.source} holds {name} of shape {list(shape)}, and the base model's is "
            f"{list(expected.shape)}; name the base that it was trained on."
        )


def _fill_head(model: PreTrainedModel, adapter: PeftAdapter) -> None:
    """The head of the file; what it lacks must be in the base, or it would be random."""
    lost = cast("frozenset[str]", model.started_anew) - adapter.others.keys()
    if lost:
        raise UserError(
            f"Neither {adapter.source} nor its base holds {listed(sorted(lost))}: it was drawn at "
            "random when the adapter was trained and PEFT did not save it, so what was trained "
            "cannot be rebuilt. Train again with it in modules_to_save."
        )
    for name, tensor in adapter.others.items():
        model.get_parameter(name).copy_(tensor)
    # We train the pooler whole and never adapt it, so an update of it becomes part of it.
    for path, update in adapter.updates.items():
        if is_head(model, path):
            model.get_parameter(f"{path}.weight").add_(update.delta())

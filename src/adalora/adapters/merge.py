"""Merged weights for inference: plain linear layers, and nothing kept of the base."""

from __future__ import annotations

import copy
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PreTrainedModel

from adalora.adapters.head import head_names
from adalora.adapters.kinds import PARTS, lora_layers
from adalora.adapters.lora import replace_module
from adalora.adapters.peft_method import is_peft
from adalora.errors import UserError
from loralib.base import LinearAdapter


def merge_adapters(model: nn.Module) -> int:
    """Add every LoRA update into its weight and put a plain ``nn.Linear`` in the layer's place.

    The base's weights are left as they are, for whoever shares them.

    Returns:
        How many layers were merged.

    Raises:
        UserError: if the model has adapters that are no update of a weight.
    """
    modules = dict(model.named_modules())
    if is_peft(model):
        raise UserError(
            "This model was trained by PEFT and is merged by PEFT alone (merge_and_unload)."
        )
    if PARTS["bottleneck"].parameters(model):
        raise UserError("Bottleneck adapters are layers of their own and cannot be merged.")
    if any(getattr(module, "position_query_bypass", False) for module in modules.values()):
        raise UserError(
            "This model was trained with --position_query_bypass: its positional query uses the "
            "base weight as well as the adapted one, so it cannot be merged exactly."
        )
    merged = 0
    for path, module in modules.items():
        if isinstance(module, LinearAdapter):
            module.merge()
            layer: Any = nn.Linear(module.in_features, module.out_features, device="meta")
            layer.weight, layer.bias = module.weight, module.bias
            replace_module(model, path, layer)
            merged += 1
    return merged


@torch.no_grad()
def merged_model(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` with every low-rank update added into its weight; untouched weights are shared.

    It is in float32 or wider, without bottleneck adapters.
    """
    state = model.state_dict()
    for path, layer in lora_layers(model).items():
        state[f"{path}.weight"] = layer.merged_weight()
    return _installed(model, state)


def base_without_head(model: PreTrainedModel) -> PreTrainedModel:
    """The frozen base that ``model`` adapts, its head zero; the base's weights are shared."""
    state = model.state_dict()
    for name in head_names(model):
        state[name] = torch.zeros_like(state[name])
    return _installed(model, state)


def _installed(model: PreTrainedModel, state: dict[str, Tensor]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    # Ours alone; a reader of the configuration should not wonder about it.
    if hasattr(config, "position_query_bypass"):
        del config.position_query_bypass
    # Without weights of its own, which would be drawn to be thrown away.
    with init_empty_weights():
        plain: PreTrainedModel = type(model)(config)
    plain.load_state_dict({name: state[name] for name in plain.state_dict()}, assign=True)
    return plain.eval()

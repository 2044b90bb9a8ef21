"""Merged weights for inference: plain linear layers, and nothing kept of the base."""

from __future__ import annotations

from typing import Any

from torch import nn

import loralib
from adalora.adapters.bottleneck import Bottleneck
from adalora.adapters.lora import replace_module
from adalora.adapters.peft_method import is_peft
from adalora.errors import UserError

__all__ = ["merge_adapters"]


def merge_adapters(model: nn.Module) -> int:
    """Add every LoRA update into its weight and put a plain ``nn.Linear`` in the layer's place.

    The base's weights in memory are overwritten, so no other model may share them.

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
    if any(isinstance(module, Bottleneck) for module in modules.values()):
        raise UserError("Bottleneck adapters are layers of their own and cannot be merged.")
    if any(getattr(module, "position_query_bypass", False) for module in modules.values()):
        raise UserError(
            "This model was trained with --position_query_bypass: its positional query uses the "
            "base weight beside the adapted one, so it cannot be merged exactly."
        )
    merged = 0
    for path, module in modules.items():
        if isinstance(module, loralib.Linear | loralib.SVDLinear):
            module.merge()
            layer: Any = nn.Linear(module.in_features, module.out_features, device="meta")
            layer.weight, layer.bias = module.weight, module.bias
            replace_module(model, path, layer)
            merged += 1
    return merged

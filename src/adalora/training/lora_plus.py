"""LoRA+: one of the two factors learns faster.

Hayou, Ghosh and Yu (arXiv 2402.12354): with one learning rate for both, ``lora_B``, which starts at
zero, learns too slowly in wide models; its rate is that of ``lora_A`` times a ratio, 16 in their
experiments. For ``svd`` the paper says nothing; ours raises the rate of ``lora_E``, which is what
starts at zero there.
"""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

import loralib

__all__ = ["raise_learning_rate"]


def raise_learning_rate(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """Multiply the learning rate of the factor that starts at zero by ``ratio``.

    The parameters move to groups of their own, after the others, with the weight decay and all
    else of the group that they come from. Schedules multiply every group's own rate.

    Args:
        optimizer: a fresh one over ``model``, without a schedule yet.
        model: with LoRA layers, wrapped or not.
        ratio: above 0.
    """
    faster = {
        id(layer.lora_E if isinstance(layer, loralib.SVDLinear) else layer.lora_B)
        for layer in model.modules()
        if isinstance(layer, loralib.LoRALayer) and layer.has_adapter
    }
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in faster]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in faster]
            optimizer.add_param_group({**group, "params": moved, "lr": group["lr"] * ratio})

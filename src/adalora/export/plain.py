"""The installed model class over the trained weights, with nothing of ours left in it."""

from __future__ import annotations

import copy

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor
from transformers import PreTrainedModel

import loralib
from adalora.adapters import head_names

__all__ = ["base_without_head", "merged_model"]


@torch.no_grad()
def merged_model(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` with every low-rank update added into its weight; untouched weights are shared.

    Args:
        model: in float32 or wider, without bottleneck adapters.
    """
    state = model.state_dict()
    for path, module in model.named_modules():
        if isinstance(module, loralib.Linear | loralib.SVDLinear) and module.has_adapter:
            state[f"{path}.weight"] = module.weight + module.delta_weight()
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

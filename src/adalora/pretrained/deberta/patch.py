"""Giving a loaded DebertaV2 model our attention and our way through the encoder, in place."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import nn
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Model,
    DisentangledSelfAttention,
)

from adalora.errors import UserError
from adalora.pretrained.deberta.attention import DisentangledAttention
from adalora.pretrained.deberta.encoder import UnpaddedDebertaV2Model
from adalora.pretrained.dropout import use_fast_dropout

Model = TypeVar("Model", bound=nn.Module)


def patch(model: Model, *, position_query_bypass: bool = False, unpad: bool = True) -> Model:
    """Give ``model`` our attention and encoder; its parameters and their names stay.

    Patching twice equals patching once; the options of the last call count.

    Args:
        model: any transformers model of type ``deberta-v2`` (DeBERTaV3 is one), before or after
            adapters were put on it.
        unpad: run the encoder on the real tokens only; False takes the installed way, with padding.
        position_query_bypass: see ``DisentangledAttention``; also noted in ``model.config``.

    Raises:
        UserError: if the model has no DebertaV2 attention.
    """
    found = 0
    for module in list(model.modules()):
        if isinstance(module, DebertaV2Model):
            module.__class__ = UnpaddedDebertaV2Model
            cast(UnpaddedDebertaV2Model, module).unpad = unpad
        for name, child in list(module.named_children()):
            if isinstance(child, DisentangledSelfAttention):
                swapped = DisentangledAttention(child, position_query_bypass=position_query_bypass)
                setattr(module, name, swapped)
                found += 1
            elif isinstance(child, DisentangledAttention):
                child.position_query_bypass = position_query_bypass
                found += 1
    use_fast_dropout(model)
    config = getattr(model, "config", None)
    if not found:
        kind = getattr(config, "model_type", type(model).__name__)
        raise UserError(f"patch serves DeBERTaV3 (model type deberta-v2), and this is {kind!r}.")
    if config is not None:
        config.position_query_bypass = position_query_bypass
    return model

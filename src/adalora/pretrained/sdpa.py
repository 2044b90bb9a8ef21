"""Attention of encoders other than DeBERTa, on a CPU, with dropout that costs a fraction.

transformers hands attention with dropout to torch's ``scaled_dot_product_attention``, which has no
kernel for it on the CPU: it draws a number per score, and looks at every row for one that is masked
whole. Here the masks are those of ``keep_mask``. Without dropout, on another device, and for
whatever an encoder's layer does not ask for, transformers' own function answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from adalora.pretrained.dropout import fast_dropout

_NAME = "adalora_encoder"


def use_fast_attention(model: PreTrainedModel) -> None:
    """Let a model that takes torch's attention take this one; what it saves does not change."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_NAME)


def encoder_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend, by the signature of transformers' ``AttentionInterface``.

    Args:
        module: the layer.
        query: [batch, heads, queries, d].
        key: [batch, heads, keys, d].
        value: [batch, heads, keys, d].
        attention_mask: bool, True where a query may attend, or what is added to the scores;
            broadcast to [batch, heads, queries, keys].
        dropout: probability of dropping an attention probability.
        scaling: factor of the scores; None means 1 / √d.
        others: handed on to transformers' function, which answers if any of it has a meaning.

    Returns:
        [batch, queries, heads, d], in the dtype of ``value``, and None.
    """
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    plain = query.is_cpu and not causal and key.shape[1] == query.shape[1]
    asked = any(others.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if dropout == 0 or not plain or asked or torch.compiler.is_compiling():
        answer: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return answer
    # The softmax kernel computes in float32 whatever the dtype of its input; autocast would make
    # its result, the largest tensor of a layer, float32 as well.
    with torch.autocast("cpu", enabled=False):
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = (query * factor) @ key.transpose(-1, -2)
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        elif attention_mask is not None:
            scores = scores + attention_mask
        probabilities = fast_dropout(torch.softmax(scores, dim=-1), dropout)
        return (probabilities @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, encoder_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)

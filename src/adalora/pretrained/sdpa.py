"""Attention of encoders other than DeBERTa: over packed tokens, and with dropout at low cost.

An encoder that runs on real tokens only (``pretrained/unpadded.py``) has a ``PackedBatch`` where
others have a mask. On a CPU its sequences are attended to in groups of similar length, on another
device all at once, with queries, keys and values padded for that product alone.

With a mask, transformers hands attention with dropout to torch's ``scaled_dot_product_attention``,
which has no kernel for it on the CPU: it draws a number per score, and looks at every row for one
that is masked whole. Here the masks are those of ``keep_mask``. Without dropout, on another device,
and for whatever an encoder's layer does not ask for, transformers' own function answers.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

from adalora.pretrained.deberta.packed_attention import PackedBatch, packed_attention
from adalora.pretrained.deberta.packing import Packing
from adalora.pretrained.dropout import fast_dropout

ENCODER_ATTENTION = "adalora_encoder"
#: Added to the score of a key that a query may not see. Finite, so that a place without a token,
#: which may see nothing, stays free of NaN; in float16 too, after it is added to a score.
_UNSEEN = -3e4

#: The batch that an encoder is working on; None while it computes padding.
current_batch: ContextVar[PackedBatch | None] = ContextVar("current_batch", default=None)


def use_fast_attention(model: PreTrainedModel) -> None:
    """Let a model that takes torch's attention take this one; what it saves does not change."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ENCODER_ATTENTION)


def packed_batch(packing: Packing, bias: Tensor | None = None) -> PackedBatch:
    """What the layers of an encoder are given for a mask.

    Args:
        packing: the batch.
        bias: added to the scaled scores, [heads or 1, reach, reach] for the packing's ``reach``.
    """
    if packing.in_groups:
        return PackedBatch(packing, bias=bias)
    real = packing.pad(torch.ones_like(packing.rows, dtype=torch.bool))[:, None, None]
    return PackedBatch(packing, mask=real if bias is None else torch.where(real, bias, _UNSEEN))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: PackedBatch,
    *,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attend within each sequence of a packed batch, [rows, heads, d] -> [rows, heads, d].

    Args:
        query: [rows, heads, d].
        key: [rows, heads, d].
        value: [rows, heads, d].
        batch: of ``packed_batch``.
        scale: divisor of the scores.
        dropout: probability of dropping an attention probability.
    """
    packing = batch.packing
    if batch.mask is None:
        return packed_attention(
            query,
            key,
            value,
            None,
            None,
            groups=packing.groups,
            positions=None,
            scale=scale,
            dropout=dropout,
            bias=batch.bias,
        )
    mask = batch.mask if batch.mask.dtype == torch.bool else batch.mask.to(query.dtype)
    query, key, value = (packing.pad(x).transpose(1, 2) for x in (query, key, value))
    context = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=1 / scale
    )
    return packing.pack(context.transpose(1, 2))


def encoder_mask(**options: Any) -> Any:
    """The batch that is packed, or transformers' mask; by ``AttentionMaskInterface``."""
    batch = None if torch.compiler.is_compiling() else current_batch.get()
    if batch is None:
        return sdpa_mask(**options)
    sees = options["mask_function"]
    if sees is bidirectional_mask_function:
        return batch
    # A window, say: which positions see one another is the same in every sequence.
    place = torch.arange(batch.packing.reach, device=batch.packing.rows.device)
    seen = sees(0, 0, place[:, None], place)[None]
    bias = torch.zeros(seen.shape, dtype=options["dtype"], device=seen.device)
    return packed_batch(batch.packing, bias.masked_fill_(~seen, _UNSEEN))


def encoder_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | PackedBatch | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend, by the signature of transformers' ``AttentionInterface``.

    Args:
        module: the layer.
        query: [batch, heads, queries, d].
        key: [batch, heads, keys, d].
        value: [batch, heads, keys, d].
        attention_mask: bool, True where a query may attend, or what is added to the scores;
            broadcast to [batch, heads, queries, keys]. Or the batch whose tokens are packed in a
            row: then ``batch`` above is 1.
        dropout: probability of dropping an attention probability.
        scaling: factor of the scores; None means 1 / √d.
        others: handed on to transformers' function, which answers if any of it has a meaning.

    Returns:
        [batch, queries, heads, d], in the dtype of ``value``; and the probabilities
        [batch, heads, queries, keys] where ``output_attentions`` asks for them, otherwise None.
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(attention_mask, PackedBatch):
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        context = attend(query, key, value, attention_mask, scale=1 / factor, dropout=dropout)
        return context[None], None
    causal = others.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    plain = query.is_cpu and not causal and key.shape[1] == query.shape[1]
    wanted = bool(others.get("output_attentions"))
    asked = any(others.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    fast = (dropout > 0 or wanted) and plain and not torch.compiler.is_compiling()
    if asked or not fast:
        answer: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return answer
    # The softmax kernel computes in float32 whatever the dtype of its input; autocast would make
    # its result, the largest tensor of a layer, float32 as well.
    with torch.autocast("cpu", enabled=False):
        scores = (query * factor) @ key.transpose(-1, -2)
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        elif attention_mask is not None:
            scores = scores + attention_mask
        probabilities = torch.softmax(scores, dim=-1)
        if dropout > 0:
            probabilities = fast_dropout(probabilities, dropout)
        context = (probabilities @ value).transpose(1, 2).contiguous()
        return context, probabilities if wanted else None


AttentionInterface.register(ENCODER_ATTENTION, encoder_attention)
AttentionMaskInterface.register(ENCODER_ATTENTION, encoder_mask)

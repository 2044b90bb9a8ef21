"""Encoders of BERT's kind that run on the real tokens of a batch only.

The installed model runs as it is, over one row that holds every token of the batch. A hook before
it packs its inputs; the attention (``pretrained/sdpa.py``) keeps the sequences apart; a hook after
its layers pads their result again, so that poolers and heads find the shapes they expect. MPNet,
whose attention is its own, has another way through it in place of the hooks. What an encoder is
asked for and cannot give on packed tokens, it computes with padding, as installed.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.mpnet.modeling_mpnet import MPNetModel, MPNetSelfAttention

from adalora.pretrained.deberta.packed_attention import PackedBatch
from adalora.pretrained.deberta.packing import Packing, can_embed_packed
from adalora.pretrained.sdpa import (
    ENCODER_ATTENTION,
    attend,
    current_batch,
    packed_batch,
    use_fast_attention,
)

#: Model type -> the part that holds its layers; "" where they end in the encoder's own result.
LAYERS = {
    **dict.fromkeys(("albert", "bert", "camembert", "data2vec-text", "electra"), "encoder"),
    **dict.fromkeys(("ernie", "roberta", "roberta-prelayernorm", "xlm-roberta"), "encoder"),
    "distilbert": "transformer",
    "modernbert": "",
    "xlm-roberta-xl": "encoder",
}
#: Inputs with one entry per position.
_PER_POSITION = ("input_ids", "token_type_ids", "task_type_ids", "inputs_embeds")


def unpad_encoder(model: PreTrainedModel, *, unpad: bool = True) -> None:
    """Let the encoder of ``model`` run on real tokens only, if it is of a kind that can.

    Parameters, their names and what is saved do not change. Calling it twice is calling it once.

    Args:
        model: as loaded, with or without a head.
        unpad: False takes the installed way, with padding.
    """
    use_fast_attention(model)
    encoder: Any = model.base_model
    layers = LAYERS.get(model.config.model_type)
    if isinstance(encoder, MPNetModel):
        encoder.__class__ = UnpaddedMPNetModel
        for module in encoder.modules():
            if type(module) is MPNetSelfAttention:
                module.__class__ = PackedMPNetAttention
    elif layers is None or model.config._attn_implementation != ENCODER_ATTENTION:
        return
    elif not hasattr(encoder, "unpad"):
        encoder.register_forward_pre_hook(_pack, with_kwargs=True)
        encoder.register_forward_hook(_pad_the_rest, always_call=True)
        if layers:
            getattr(encoder, layers).register_forward_hook(_pad_layers)
    encoder.unpad = unpad


def is_unpadded(module: nn.Module) -> bool:
    """Whether this is an encoder that runs on the real tokens only, DeBERTaV3 or another."""
    return isinstance(module, PreTrainedModel) and bool(getattr(module, "unpad", False))


# ---- before the encoder ----


@functools.cache
def _names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Of the parameters of an encoder's forward method, in order."""
    return tuple(inspect.signature(forward).parameters)[1:]


def _pack(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forward pre-hook: the same call, over one row of tokens; None leaves it as it is."""
    if torch.compiler.is_compiling():
        return None
    current_batch.set(None)
    named = dict(zip(_names(type(encoder).forward), args, strict=False)) | kwargs
    if encoder.config._attn_implementation != ENCODER_ATTENTION:
        return None
    packing = _packing(encoder, named)
    if packing is None:
        return None
    current_batch.set(packed_batch(packing))
    return (), named | _packed_inputs(encoder, packing, named) | {"attention_mask": None}


def _packing(encoder: Any, named: dict[str, Any]) -> Packing | None:
    """None where the installed way has to be taken."""
    config = encoder.config
    inputs = [named[name] for name in ("input_ids", "inputs_embeds") if named.get(name) is not None]
    mask = named.get("attention_mask")
    attentions = named.get("output_attentions")
    if (
        not encoder.unpad
        or torch.compiler.is_compiling()
        or not can_embed_packed(encoder)
        or len(inputs) != 1
        or not (mask is None or isinstance(mask, Tensor))
        or (config.output_attentions if attentions is None else attentions)
        or getattr(config, "is_decoder", False)
        or getattr(config, "chunk_size_feed_forward", 0)
        or any(named.get(x) is not None for x in ("encoder_hidden_states", "past_key_values"))
    ):
        return None
    return Packing.for_batch(mask, inputs[0], encoder.dtype)


def _packed_inputs(encoder: Any, packing: Packing, named: dict[str, Any]) -> dict[str, Any]:
    """What has an entry per position, as [1, rows, ...]."""
    given = {name: named[name] for name in _PER_POSITION if named.get(name) is not None}
    packed: dict[str, Any] = {n: packing.pack(value)[None] for n, value in given.items()}
    if "input_ids" in given:
        words = packing.words(encoder.get_input_embeddings(), given["input_ids"])
        packed |= {} if words is None else {"input_ids": None, "inputs_embeds": words[None]}
    # RoBERTa and its like count from after the padding index, and count no padding token.
    before = getattr(encoder.embeddings, "padding_idx", None)
    if named.get("position_ids") is not None:
        positions = packing.pack(named["position_ids"].expand(packing.batch, -1))
    elif before is None:
        positions = packing.rows % packing.length
    elif "input_ids" in given:
        counted = given["input_ids"].ne(before).long()
        positions = packing.pack(counted.cumsum(1) * counted + before)
    else:
        positions = packing.rows % packing.length + before + 1
    return packed | {"position_ids": positions[None]}


# ---- after its layers ----


def _pad_layers(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook of the part that holds the layers."""
    batch = None if torch.compiler.is_compiling() else current_batch.get()
    return None if batch is None else _padded(output, batch.packing)


def _pad_the_rest(encoder: Any, args: Any, output: Any) -> Any:
    """Forward hook of the encoder: the states that transformers collected of single layers."""
    batch = None if torch.compiler.is_compiling() else current_batch.get()
    if batch is None:
        return None
    current_batch.set(None)
    if output is None:  # it raised
        return None
    done = output[0] if LAYERS[encoder.config.model_type] else None
    return _padded(output, batch.packing, done=done)


def _padded(output: Any, packing: Packing, done: Tensor | None = None) -> Any:
    """``output`` with every state [1, rows, hidden] but ``done`` as [batch, length, hidden]."""
    known: dict[int, Tensor] = {}

    def pad(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(pad, value))
        if not isinstance(value, Tensor) or value.dim() != 3 or value is done:
            return value
        if id(value) not in known:
            known[id(value)] = packing.pad(value[0])
        return known[id(value)]

    if isinstance(output, tuple):
        return pad(output)
    for name, value in output.items():
        output[name] = pad(value)
    return output


# ---- MPNet ----


class UnpaddedMPNetModel(MPNetModel):  # type: ignore[misc]
    """The installed model with another way through it; parameters and their names are its own."""

    unpad: bool

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the installed model's; shapes and results are the same."""
        named = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "output_attentions": output_attentions,
        }
        packing = _packing(self, named)
        if packing is None:
            return super().forward(
                **named, output_hidden_states=output_hidden_states, return_dict=return_dict
            )
        states = self.embeddings(**_packed_inputs(self, packing, named))[0]
        # It reads the length alone; the bias of two positions depends on their distance.
        bias = self.encoder.compute_position_bias(states.new_empty(1, packing.reach, 0))[0]
        batch = packed_batch(packing, bias)
        everything = [states]
        for layer in self.encoder.layer:
            everything.append(layer(everything[-1], batch)[0])
        last = packing.pad(everything.pop())
        wants = self.config.output_hidden_states
        hidden = None
        if wants if output_hidden_states is None else output_hidden_states:
            hidden = (*map(packing.pad, everything), last)
        output = BaseModelOutputWithPooling(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last),
            hidden_states=hidden,
        )
        if self.config.return_dict if return_dict is None else return_dict:
            return output
        return (last, output.pooler_output, *([] if hidden is None else [hidden]))


class PackedMPNetAttention(MPNetSelfAttention):  # type: ignore[misc]
    """The installed attention, over packed tokens where it is given a ``PackedBatch``."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | PackedBatch | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As the installed one's; or [rows, hidden] -> [rows, hidden], in a tuple."""
        if not isinstance(attention_mask, PackedBatch):
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        sizes = (self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            project(hidden_states).unflatten(-1, sizes) for project in (self.q, self.k, self.v)
        )
        context = attend(
            query,
            key,
            value,
            attention_mask,
            scale=math.sqrt(self.attention_head_size),
            dropout=self.dropout.p if self.training else 0.0,
        )
        return (self.o(context.flatten(1)),)

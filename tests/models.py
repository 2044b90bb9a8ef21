"""Tiny encoders with random weights: every architecture that the adapters know, in one spelling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    PreTrainedConfig,
    PreTrainedModel,
)

WIDTH, INNER, LAYERS, VOCABULARY = 16, 24, 2, 40
#: How DeBERTa sees places, in all its versions.
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
#: What makes a DeBERTaV3 of a ``DebertaV2Config``.
DEBERTA_V3: dict[str, Any] = {
    **RELATIVE,
    "share_att_key": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_MORE: dict[str, dict[str, Any]] = {
    # As V3, with the embeddings of V2: both kinds of input occur.
    "deberta-v2": {
        **RELATIVE,
        "share_att_key": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "max_relative_positions": 16,
    },
    "deberta": {**RELATIVE, "max_relative_positions": 16},
    "electra": {"embedding_size": WIDTH},
    "albert": {"embedding_size": 8},
    "distilbert": {"hidden_dim": INNER},
    "mpnet": {"pad_token_id": 1},  # whatever the configuration says
    # A window of four tokens, every second layer; special tokens inside the vocabulary.
    "modernbert": {
        "local_attention": 4,
        "global_attn_every_n_layers": 2,
        **dict.fromkeys(("bos_token_id", "cls_token_id"), 1),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), 2),
    },
}
#: By ``config.model_type``; the encoders that are BERT with other names for its matrices.
BY_NAME = ("albert", "camembert", "distilbert", "modernbert", "mpnet", "xlm-roberta")


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of an encoder of some ten thousand parameters."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": INNER,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
    }
    config: PreTrainedConfig = AutoConfig.for_model(
        model_type, **{**values, **_MORE.get(model_type, {}), **changes}
    )
    return config


def deberta_v3_config(**changes: Any) -> DebertaV2Config:
    """The configuration of a tiny DeBERTaV3, two layers unless ``changes`` say otherwise."""
    values = {"num_hidden_layers": LAYERS, "num_attention_heads": 2, **DEBERTA_V3}
    return DebertaV2Config(**{**values, **changes})


def tiny_classifier(model_type: str, **changes: Any) -> PreTrainedModel:
    """A classifier in evaluation mode, always of the same weights."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        tiny_config(model_type, **changes)
    )
    return model.eval()


def tiny_batch() -> dict[str, Tensor]:
    """Token ids [3, 7], the second row with padding, and labels [3]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 0]),
    }

"""Tiny random classifiers of every architecture that the adapters know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from adalora.pretrained.deberta.patch import patch

WIDTH, INNER, LAYERS, VOCABULARY = 16, 24, 2, 40


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """Makes a classifier in evaluation mode: ``tiny("bert", num_labels=3)``."""

    def make(model_type: str, **settings: Any) -> PreTrainedModel:
        extra: dict[str, Any] = {}
        if model_type.startswith("deberta"):
            extra = {
                "relative_attention": True,
                "pos_att_type": ["c2p", "p2c"],
                "share_att_key": True,
                "position_buckets": 8,
                "norm_rel_ebd": "layer_norm",
                "max_relative_positions": 16,
            }
        if model_type == "electra":
            extra = {"embedding_size": WIDTH}
        config = AutoConfig.for_model(
            model_type,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=INNER,
            max_position_embeddings=32,
            pad_token_id=0,
            **extra,
            **settings,
        )
        torch.manual_seed(1)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        # As load_classifier gives it, so that what is compared differs in nothing else.
        return patch(model) if model_type == "deberta-v2" else model

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Token ids [3, 7] with padding, and labels [3]."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 0]),
    }


@pytest.fixture
def same() -> Callable[[PreTrainedModel, PreTrainedModel, dict[str, Tensor]], None]:
    """Asserts that two models have the same parameters, bit for bit, and so the same logits.

    Logits to rounding: equal weights at other addresses may go through another matrix kernel.
    """

    def check(one: PreTrainedModel, two: PreTrainedModel, batch: dict[str, Tensor]) -> None:
        mine, theirs = dict(one.named_parameters()), dict(two.named_parameters())
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
        logits = one(**batch).logits
        rounding = 8 * torch.finfo(logits.dtype).eps
        torch.testing.assert_close(logits, two(**batch).logits, rtol=rounding, atol=rounding)

    return check

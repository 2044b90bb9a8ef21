"""Tiny random classifiers of every architecture that the adapters know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.models import tiny_batch, tiny_classifier
from torch import Tensor
from transformers import PreTrainedModel

from adalora.pretrained.deberta.patch import patch
from adalora.pretrained.unpadded import unpad_encoder


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """Makes a classifier in evaluation mode: ``tiny("bert", num_labels=3)``."""

    def make(model_type: str, **settings: Any) -> PreTrainedModel:
        model = tiny_classifier(model_type, **settings)
        # As load_classifier gives it, so that what is compared differs in nothing else.
        if model_type == "deberta-v2":
            return patch(model)
        unpad_encoder(model)
        return model

    return make


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return tiny_batch()


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

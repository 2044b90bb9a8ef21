"""Tiny random classifiers of every architecture that the adapters know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.models import tiny_batch, tiny_classifier
from torch import Tensor
from transformers import PreTrainedModel


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """Makes a classifier in evaluation mode: ``tiny("bert", num_labels=3)``."""
    return tiny_classifier


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return tiny_batch()

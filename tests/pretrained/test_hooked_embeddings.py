"""What hooks the embeddings sees whole sequences, also where the encoder computes no padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models import NO_DROPOUT, deberta_v3_config
from tests.pretrained.test_unpadded import KINDS, MASKS, batch, pair
from torch import Tensor, nn
from transformers import DebertaV2ForSequenceClassification, PreTrainedModel
from transformers.integrations.neftune import neftune_post_forward_hook

from adalora.pretrained.deberta.patch import patch

CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def both(kind: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A padded model as installed, and the same one on real tokens."""
    if kind != "deberta-v2":
        return pair(kind)
    torch.manual_seed(0)
    config = deberta_v3_config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_labels=3, **NO_DROPOUT
    )
    model = DebertaV2ForSequenceClassification(config).train()
    return patch(copy.deepcopy(model), unpad=False), patch(model)


def by_place(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook whose change of a vector depends on the shape of the batch and on the place in it."""
    _, length, width = output.shape
    places = torch.arange(length, dtype=output.dtype)[:, None] / (length * width) ** 0.5
    return output + places


@pytest.mark.parametrize("kind", [*KINDS, "deberta-v2"])
@pytest.mark.parametrize("part", ["table", "embeddings"])
def test_a_hook_sees_what_it_sees_with_padding(kind: str, part: str) -> None:
    inputs, shapes, logits = batch(MASKS["right"]), [], []
    for model in both(kind):
        encoder: Any = model.base_model
        hooked = encoder.get_input_embeddings() if part == "table" else encoder.embeddings
        hooked.register_forward_hook(lambda m, a, out: shapes.append(out.shape))
        hooked.register_forward_hook(by_place)
        logits.append(model(**inputs).logits)
    assert shapes[0] == shapes[1]
    assert shapes[0][:2] == inputs["input_ids"].shape
    torch.testing.assert_close(logits[1], logits[0], **CLOSE)


@pytest.mark.parametrize("kind", ["bert", "mpnet", "deberta-v2"])
def test_the_noise_of_neftune_is_as_large_as_with_padding(kind: str) -> None:
    """Its bound is alpha / sqrt(length · width) of a padded batch, not of one row of all tokens."""
    inputs = batch(MASKS["right"])
    _, ours = both(kind)
    table: Any = ours.base_model.get_input_embeddings()
    table.neftune_noise_alpha = 5.0
    table.register_forward_hook(neftune_post_forward_hook)
    sizes = []
    table.register_forward_hook(
        lambda m, args, out: sizes.append((out - m.weight[args[0]]).abs().max().item())
    )
    ours(**inputs)
    bound = 5.0 / (inputs["input_ids"].shape[1] * table.embedding_dim) ** 0.5
    assert sizes[0] == pytest.approx(bound, rel=0.05)


def test_without_a_hook_no_padding_is_embedded() -> None:
    _, ours = both("bert")
    seen = []
    table: Any = ours.base_model.get_input_embeddings()
    forward = table.forward
    table.forward = lambda ids: seen.append(ids.numel()) or forward(ids)
    inputs = batch(MASKS["right"])
    ours(**inputs)
    assert seen == [int(inputs["attention_mask"].sum())]

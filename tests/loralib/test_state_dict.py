"""Which parameters train, and what is saved of a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import loralib


def model() -> nn.Sequential:
    return nn.Sequential(loralib.SVDLinear(4, 5, r=2), nn.Linear(5, 3))


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("none", set()),
        ("all", {"0.bias", "1.bias"}),
        ("lora_only", {"0.bias"}),
    ],
)
def test_adapters_train_and_biases_as_asked(bias: str, expected: set[str]) -> None:
    made = model()
    loralib.mark_only_lora_as_trainable(made, bias=bias)
    adapters = {"0.lora_A", "0.lora_E", "0.lora_B"}
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert trained == adapters | expected
    assert set(loralib.lora_state_dict(made, bias=bias)) == adapters | expected


@pytest.mark.parametrize("function", [loralib.mark_only_lora_as_trainable, loralib.lora_state_dict])
def test_an_unknown_bias_is_named(function: object) -> None:
    with pytest.raises(ValueError, match="got 'some'"):
        function(model(), bias="some")  # type: ignore[operator]


def test_a_saved_adapter_comes_back_and_another_is_refused() -> None:
    one, two = model(), model()
    loralib.load_lora_state_dict(two, loralib.lora_state_dict(one))
    assert torch.equal(one[0].lora_A, two[0].lora_A)
    with pytest.raises(ValueError, match="3 are missing"):
        loralib.load_lora_state_dict(two, {})

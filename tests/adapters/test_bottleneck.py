"""Bottleneck adapters: their places, their start, their gradients."""

from __future__ import annotations

import pytest
import torch
from tests.models import LAYERS, WIDTH
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import count_parameters, freeze_base
from adalora.errors import UserError

TYPES = ("deberta-v2", "deberta", "bert", "roberta", "electra")


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(("adapter_type", "places"), [("houlsby", 2), ("pfeiffer", 1)])
def test_bottlenecks_start_as_the_base_and_keep_its_names(
    tiny, batch, model_type, adapter_type, places
):
    model = tiny(model_type)
    before = model(**batch).logits
    names = {name for name, _ in model.named_parameters()}
    paths = add_bottleneck(model, adapter_type=adapter_type, adapter_size=5)
    assert torch.equal(model(**batch).logits, before)
    assert len(paths) == places * LAYERS
    added = {name for name, _ in model.named_parameters()} - names
    assert names <= {name for name, _ in model.named_parameters()}
    assert added == {
        f"{path}.adapter_{side}.{kind}"
        for path in paths
        for side in "AB"
        for kind in ("weight", "bias")
    }
    freeze_base(model, train="bottleneck")
    assert count_parameters(model).adapter_initial == len(paths) * (2 * WIDTH * 5 + 5 + WIDTH)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("adapter_type", ["houlsby", "pfeiffer"])
def test_every_bottleneck_parameter_gets_a_gradient(tiny, batch, model_type, adapter_type):
    model = tiny(model_type)
    paths = add_bottleneck(model, adapter_type=adapter_type, adapter_size=5)
    trained = freeze_base(model, train="bottleneck")
    with torch.no_grad():
        for path in paths:
            model.get_submodule(path).adapter_B.weight.normal_()
            model.get_submodule(path).adapter_A.bias.fill_(1.0)  # no ReLU is dead for all tokens
    model(**batch).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == trained
    assert [n for n in trained if not model.get_parameter(n).grad.abs().sum() > 0] == []


def test_houlsby_adapts_before_the_sum_and_pfeiffer_after_it(tiny):
    hidden, residual = torch.randn(2, 3, 24), torch.randn(2, 3, WIDTH)
    for adapter_type in ("houlsby", "pfeiffer"):
        model = tiny("bert")
        add_bottleneck(model, adapter_type=adapter_type, adapter_size=5)
        block = model.bert.encoder.layer[0].output
        torch.nn.init.normal_(block.adapter.adapter_B.weight)
        torch.nn.init.normal_(block.adapter.adapter_B.bias)
        a, b, norm = block.adapter.adapter_A, block.adapter.adapter_B, block.LayerNorm
        dense = block.dense(hidden)
        if adapter_type == "houlsby":
            adapted = b(F.silu(a(dense))) + dense
        else:
            adapted = b(F.relu(a(norm(dense + residual)))) + dense
        torch.testing.assert_close(block(hidden, residual), norm(adapted + residual))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter_type": "parallel", "adapter_size": 4}, "adapter_type 'parallel' is unknown"),
        ({"adapter_type": "houlsby", "adapter_size": 0}, "at least 1, and is 0"),
    ],
)
def test_bad_bottlenecks_are_errors(tiny, settings, message):
    with pytest.raises(UserError, match=message):
        add_bottleneck(tiny("bert"), **settings)


def test_bottlenecks_go_on_once_and_only_where_there_is_a_place(tiny):
    model = tiny("bert")
    add_bottleneck(model, adapter_type="houlsby", adapter_size=4)
    with pytest.raises(UserError, match="already has bottleneck adapters"):
        add_bottleneck(model, adapter_type="pfeiffer", adapter_size=4)
    config = AutoConfig.for_model(
        "distilbert", vocab_size=30, dim=8, n_layers=1, n_heads=2, hidden_dim=12
    )
    other = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(UserError, match=r"has no encoder\.layer"):
        add_bottleneck(other, adapter_type="houlsby", adapter_size=4)

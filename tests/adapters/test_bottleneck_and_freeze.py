"""Bottleneck adapters, BitFit and full fine-tuning: placement, gradients, counts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import count_parameters, freeze_base, head_names
from adalora.adapters.lora import add_lora
from adalora.errors import UserError

TYPES = ("deberta-v2", "deberta", "bert", "roberta", "electra")
WIDTH, LAYERS = 16, 2


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


@pytest.mark.parametrize(
    ("model_type", "modules"),
    [
        ("deberta-v2", {"pooler.dense", "classifier"}),
        ("deberta", {"pooler.dense", "classifier"}),
        ("bert", {"bert.pooler.dense", "classifier"}),
        ("roberta", {"classifier.dense", "classifier.out_proj"}),
        ("electra", {"classifier.dense", "classifier.out_proj"}),
    ],
)
def test_the_head_is_pooler_and_classifier(tiny, model_type, modules):
    assert {name.rpartition(".")[0] for name in head_names(tiny(model_type))} == modules


@pytest.mark.parametrize("model_type", TYPES)
def test_bitfit_trains_every_bias_of_the_base_and_the_head(tiny, batch, model_type):
    model = tiny(model_type)
    trained = freeze_base(model, train="bitfit")
    head = set(head_names(model))
    biases = {n for n, _ in model.named_parameters() if n.endswith("bias")}
    assert set(trained) == biases | head
    if model_type == "deberta":
        assert any(name.endswith("q_bias") for name in trained)
    model(**batch).loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == trained


def test_full_trains_everything_but_the_rank_counts(tiny):
    model = tiny("bert")
    assert len(freeze_base(model, train="full")) == len(list(model.parameters()))
    add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
    trained = freeze_base(model, train="full")
    assert not [name for name in trained if name.endswith("ranknum")]
    assert any(name.endswith("query.weight") for name in trained)


def test_methods_combine(tiny, batch):
    model = tiny("deberta-v2")
    add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
    add_bottleneck(model, adapter_type="pfeiffer", adapter_size=3)
    alone = [set(freeze_base(model, train=m)) for m in ("lora", "bottleneck", "bitfit")]
    together = set(freeze_base(model, train=["lora", "bottleneck", "bitfit"]))
    assert together == alone[0] | alone[1] | alone[2]
    assert not [n for n in alone[2] if ".adapter." in n]


def test_freezing_removes_gradients_of_what_no_longer_trains(tiny, batch):
    model = tiny("bert")
    model(**batch).loss.backward()
    trained = freeze_base(model, train="bitfit")
    assert [n for n, p in model.named_parameters() if p.grad is not None] == trained


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("lora", r"no lora adapters to train; call adalora\.adapters\.add_lora"),
        (["bottleneck"], "no bottleneck adapters"),
        ("prefix", "Unknown method 'prefix'"),
        ([], "No method to train"),
    ],
)
def test_freezing_needs_a_method_that_is_there(tiny, train, message):
    with pytest.raises(UserError, match=message):
        freeze_base(tiny("bert"), train=train)

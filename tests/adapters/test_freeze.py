"""What trains and what is frozen, by method, on every architecture."""

from __future__ import annotations

import pytest

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base, head_names
from adalora.adapters.lora import add_lora
from adalora.errors import UserError

TYPES = ("deberta-v2", "deberta", "bert", "roberta", "electra")


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

"""Names become exactly the modules they mean, whatever the architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from adalora.adapters.lora import add_lora
from adalora.adapters.targets import find_targets
from adalora.errors import UserError

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
BERT = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "intermediate": "intermediate.dense",
    "layer.output": "output.dense",
    "attention.output": "attention.output.dense",
}
DEBERTA_V2 = BERT | {name: f"attention.self.{name}_proj" for name in ("query", "key", "value")}
SEPARATE = [("bert", BERT), ("roberta", BERT), ("electra", BERT), ("deberta-v2", DEBERTA_V2)]


@pytest.mark.parametrize(("model_type", "table"), SEPARATE)
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_module_in_every_layer(tiny, model_type, table, name):
    model = tiny(model_type)
    base = model.base_model_prefix
    expected = [f"{base}.encoder.layer.{layer}.{table[name]}" for layer in range(2)]
    found = find_targets(model, [name])
    assert list(found) == expected
    assert all(found[path] is model.get_submodule(path) for path in expected)


def test_deberta_v1_adapts_its_fused_matrix_only_when_all_three_are_asked_for(tiny):
    model = tiny("deberta")
    found = list(find_targets(model, ["value", "query", "key"]))
    assert found == [f"deberta.encoder.layer.{n}.attention.self.in_proj" for n in range(2)]
    assert len(find_targets(model, NAMES)) == 8
    with pytest.raises(UserError, match="one matrix, so 'query' cannot be adapted without key"):
        find_targets(model, ["query", "value", "layer.output"])


def test_order_is_the_models_and_duplicates_merge(tiny):
    model = tiny("deberta-v2")
    forwards = list(find_targets(model, NAMES))
    assert list(find_targets(model, (*reversed(NAMES), "query"))) == forwards
    modules = [path for path, _ in model.named_modules()]
    assert forwards == sorted(forwards, key=modules.index)
    assert len(forwards) == 12


def test_a_string_is_split_at_commas(tiny):
    assert len(find_targets(tiny("bert"), "query, key")) == 4


def test_a_model_without_a_head_has_the_same_targets(tiny):
    base = AutoModel.from_config(tiny("bert").config)
    assert len(find_targets(base, NAMES)) == 12


def test_a_pattern_must_match_the_whole_path(tiny):
    model = tiny("bert")
    assert len(find_targets(model, [r"re:.*\.attention\.self\.query"])) == 2
    with pytest.raises(UserError, match=r"whole path must match.*bert\.encoder\.layer\.\*"):
        find_targets(model, ["re:query"])


def test_a_pattern_serves_other_architectures():
    config = AutoConfig.for_model("flaubert", n_words=30, emb_dim=8, n_layers=2, n_heads=2)
    model = AutoModelForSequenceClassification.from_config(config)
    assert len(find_targets(model, [r"re:.*\.(q|v)_lin\.?\d*"])) == 4
    with pytest.raises(UserError, match="not for 'flaubert'; give re:PATTERN"):
        find_targets(model, ["query"])


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "deberta", "roberta", "electra"])
def test_the_head_is_never_a_target(tiny, model_type):
    found = find_targets(tiny(model_type), ["re:.*"])
    assert not [path for path in found if "pooler" in path or "classifier" in path]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["querry"], "Unknown module 'querry'; choose from query, key, value"),
        (["output"], "Unknown module 'output'"),
        ([], "No module to adapt"),
        (["re:("], "not a regular expression"),
        ([r"re:bert\.pooler\.dense"], "which is the head"),
        (["re:nothing"], "matches no linear layer"),
    ],
)
def test_what_cannot_be_found_is_an_error(tiny, names, message):
    with pytest.raises(UserError, match=message):
        find_targets(tiny("bert"), names)


class Parents(nn.Module):
    """Layers of torch that read a linear layer's weight without calling it, and others."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.whole = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12)
        self.hooked = nn.Linear(8, 8)
        self.hooked.forward = lambda x: x
        self.plain = nn.Linear(8, 8)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("attention.out_proj", "NonDynamicallyQuantizableLinear is a class of its own"),
        ("whole.self_attn.out_proj", "NonDynamicallyQuantizableLinear is a class of its own"),
        ("whole.linear[12]", "reads its weight without calling it"),
        ("hooked", "was given a forward of its own"),
        (".*", "attention.out_proj cannot be adapted"),
    ],
)
def test_a_layer_whose_place_no_other_can_take_is_refused(pattern, message):
    model = Parents()
    with pytest.raises(UserError, match=message):
        find_targets(model, [f"re:{pattern}"])
    with pytest.raises(UserError, match=message):
        add_lora(model, lora_type="svd", targets=[f"re:{pattern}"], init_rank=2, lora_alpha=4)
    assert list(find_targets(model, ["re:plain"])) == ["plain"]


def test_a_known_architecture_without_the_module_is_an_error(tiny):
    model = tiny("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.query = nn.Identity()
    with pytest.raises(UserError, match=r"should be encoder\.layer\.\*\.attention\.self\.query in"):
        find_targets(model, ["query"])


def test_targets_are_found_without_weights(tiny):
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(tiny("deberta-v2").config)
    assert len(find_targets(model, NAMES)) == 12

"""LoRA layers: nothing changes at the start, the right parameters train, counts by formula."""

from __future__ import annotations

import pytest
import torch
from tests.models import deberta_v3_config
from transformers import AutoModelForSequenceClassification

import loralib
from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import count_parameters, freeze_base
from adalora.adapters.lora import add_lora
from adalora.adapters.targets import find_targets
from adalora.errors import UserError

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
TYPES = ("deberta-v2", "deberta", "bert", "roberta", "electra")
# Layers, width and inner width of the published DeBERTaV3 models.
DEBERTA_V3 = {
    "base": (12, 768, 3072),
    "small": (6, 768, 3072),
    "xsmall": (12, 384, 1536),
    "large": (24, 1024, 4096),
}


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("lora_type", ["frd", "svd"])
def test_the_adapted_model_starts_as_the_base(tiny, batch, model_type, lora_type):
    model = tiny(model_type)
    before = model(**batch).logits
    add_lora(model, lora_type=lora_type, targets=NAMES, init_rank=3, lora_alpha=16)
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("lora_type", ["frd", "svd"])
def test_every_trained_parameter_and_no_other_gets_a_gradient(tiny, batch, model_type, lora_type):
    model = tiny(model_type)
    add_lora(model, lora_type=lora_type, targets=NAMES, init_rank=3, lora_alpha=16)
    trained = freeze_base(model, train="lora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("lora_E", "lora_B")):
                # Away from zero, where the other factors' gradients vanish.
                parameter.normal_()
    model(**batch).loss.backward()
    with_gradient = [name for name, p in model.named_parameters() if p.grad is not None]
    assert with_gradient == trained
    zero = [n for n in trained if not model.get_parameter(n).grad.abs().sum() > 0]
    assert zero == []


def test_the_base_weights_are_shared_not_copied(tiny):
    model = tiny("bert")
    weights = {path: m.weight for path, m in find_targets(model, NAMES).items()}
    paths = add_lora(model, lora_type="svd", targets=NAMES, init_rank=2, lora_alpha=16)
    assert paths == list(weights)
    assert all(model.get_submodule(path).weight is weights[path] for path in paths)
    assert all(isinstance(model.get_submodule(path), loralib.SVDLinear) for path in paths)


def test_the_modes_of_the_replaced_modules_stay(tiny):
    model = tiny("bert")
    add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
    assert not any(module.training for module in model.modules())


def test_the_seed_decides_the_adapters(tiny):
    drawn = []
    for seed in (5, 5, 6):
        model = tiny("bert")
        torch.manual_seed(seed)
        add_lora(model, lora_type="svd", targets=["key"], init_rank=2, lora_alpha=16)
        drawn.append(model.bert.encoder.layer[1].attention.self.key.lora_A.detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("size", DEBERTA_V3)
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_deberta_v3_counts_follow_the_formula(size, rank):
    layers, width, inner = DEBERTA_V3[size]
    config = deberta_v3_config(
        vocab_size=128100,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=inner,
        position_buckets=256,
        pooler_hidden_size=width,
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    base = sum(p.numel() for p in model.parameters())
    paths = add_lora(model, lora_type="svd", targets=NAMES, init_rank=rank, lora_alpha=16)
    freeze_base(model, train="lora")
    counts = count_parameters(model)
    adapter = layers * rank * (8 * width + 2 * (width + inner) + 6)
    assert len(paths) == 6 * layers
    assert counts.adapter_initial == counts.adapter_kept == adapter
    assert counts.total == base + adapter
    assert counts.trainable == adapter + counts.head
    if size == "base":
        assert (len(paths), adapter) == (72, 165_960 * rank)
        assert (counts.head, base) == (592_130, 184_423_682)


def test_a_pruned_triplet_is_in_plus_out_plus_one_parameters(tiny):
    model = tiny("bert")
    paths = add_lora(model, lora_type="svd", targets=NAMES, init_rank=4, lora_alpha=16)
    freeze_base(model, train="lora")
    pattern = {f"{path}.lora_E": index % 5 for index, path in enumerate(paths)}
    expected = 0
    for path in paths:
        layer = model.get_submodule(path)
        expected += pattern[f"{path}.lora_E"] * (layer.in_features + layer.out_features + 1)
    assert count_parameters(model, pattern).adapter_kept == expected
    with pytest.raises(UserError, match=r"names 'elsewhere\.lora_E'"):
        count_parameters(model, {"elsewhere.lora_E": 1})
    with pytest.raises(UserError, match="keeps 5 triplets"):
        count_parameters(model, {f"{paths[0]}.lora_E": 5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_rank": 0}, "must be at least 1, and is 0"),
        ({"init_rank": 17}, "lora_r 17 is above the largest rank of .*query, which is 16"),
        ({"lora_type": "svdd"}, "lora_type 'svdd' is unknown"),
        ({"lora_dropout": 1.0}, "lora_dropout must be"),
        ({"targets": ["nothing"]}, "Unknown module 'nothing'"),
    ],
)
def test_bad_settings_are_errors_and_leave_the_model_alone(tiny, change, message):
    model = tiny("bert")
    names = [name for name, _ in model.named_parameters()]
    settings = {"lora_type": "svd", "targets": NAMES, "init_rank": 2, "lora_alpha": 16}
    with pytest.raises(UserError, match=message):
        add_lora(model, **(settings | change))
    assert [name for name, _ in model.named_parameters()] == names


def test_a_model_is_adapted_once(tiny):
    model = tiny("bert")
    add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
    with pytest.raises(UserError, match="already has 2 LoRA layers"):
        add_lora(model, lora_type="frd", targets=["key"], init_rank=2, lora_alpha=16)


def test_a_pattern_never_reaches_into_a_bottleneck_adapter(tiny):
    model = tiny("bert")
    add_bottleneck(model, adapter_type="houlsby", adapter_size=3)
    assert not [path for path in find_targets(model, ["re:.*"]) if ".adapter." in path]

"""The artefact: complete or absent, and the model it gives back is the one that was saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import count_parameters, freeze_base
from adalora.adapters.head import is_head, widen_head
from adalora.adapters.lora import add_lora
from adalora.artefact.description import Description, read_description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
TYPES = ("deberta-v2", "deberta", "bert", "roberta", "electra")
RANK = 4


@pytest.fixture
def trained(tiny, tmp_path):
    """A base saved in a folder, and a model over it whose trained parameters are random."""

    def make(method, model_type="deberta-v2", lora_type="svd", **settings):
        base = tmp_path / f"base-{model_type}"
        model = tiny(model_type, **settings)
        model.save_pretrained(base)
        methods = method.split("+")
        if "lora" in methods:
            add_lora(model, lora_type=lora_type, targets=NAMES, init_rank=RANK, lora_alpha=16)
        for kind in ("houlsby", "pfeiffer"):
            if kind in methods:
                add_bottleneck(model, adapter_type=kind, adapter_size=3)
                methods[methods.index(kind)] = "bottleneck"
        freeze_base(model, train=methods)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        return model, base

    return make


def describe(model, base, **changes):
    labels = [f"class{n}" for n in range(model.config.num_labels)]
    settings = {"method": "AdaLoRA", "task": "mini-rte", "labels": labels, "max_seq_length": 64}
    return Description.of(model, base_model=str(base), **(settings | changes))


def save(folder, model, base, **settings):
    settings = {"tokenizer": None, "description": describe(model, base)} | settings
    return save_artefact(folder, model, **settings)


def prune(model, ranks):
    """Zero all but the first triplets of each matrix but one; the pattern that results."""
    pattern = {}
    layers = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_E")]
    for index, (name, layer) in enumerate(layers):
        rank = ranks[index % len(ranks)]
        with torch.no_grad():
            layer.lora_E[: RANK - rank] = 0  # the survivors are the last ones, not the first
        pattern[f"{name}.lora_E"] = rank
    return pattern


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize(
    "method", ["lora", "houlsby", "pfeiffer", "bitfit", "full", "lora+houlsby+bitfit"]
)
def test_the_loaded_model_is_the_saved_one(trained, batch, same, tmp_path, model_type, method):
    model, base = trained(method, model_type)
    save(tmp_path / "run", model, base)
    artefact = load_artefact(tmp_path / "run")
    same(artefact.model, model, batch)
    assert not artefact.model.training
    assert artefact.tokenizer is None
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in artefact.model.named_parameters() if p.requires_grad} == names


@pytest.mark.parametrize("model_type", ["deberta-v2", "bert"])
def test_plain_lora_round_trips_bit_for_bit(trained, batch, same, tmp_path, model_type):
    model, base = trained("lora", model_type, lora_type="frd")
    save(tmp_path / "run", model, base)
    loaded = load_artefact(tmp_path / "run")
    same(loaded.model, model, batch)
    assert loaded.description.rank_pattern == {}
    assert loaded.description.lora.lora_type == "frd"


@pytest.mark.parametrize("ranks", [[0, 1, RANK, 2, 3], [0], [1]])
def test_a_pruned_model_is_stored_by_its_survivors(trained, batch, same, tmp_path, ranks):
    model, base = trained("lora")
    pattern = prune(model, ranks)
    expected = model(**batch).logits
    written = save(tmp_path / "run", model, base, rank_pattern=pattern)
    assert written.rank_pattern == pattern
    stored = load_file(tmp_path / "run" / "adapter.safetensors")
    kept = count_parameters(model, pattern).adapter_kept
    assert sum(tensor.numel() for tensor in stored.values()) == kept
    loaded = load_artefact(tmp_path / "run")
    assert loaded.description.rank_pattern == pattern
    # The sums are the same but for terms that are zero: rounding of their order at most.
    torch.testing.assert_close(loaded.model(**batch).logits, expected, rtol=1e-6, atol=1e-6)
    assert count_parameters(loaded.model).adapter_initial == kept
    # And once more, from the model that was loaded.
    save(tmp_path / "again", loaded.model, base, description=loaded.description)
    again = load_artefact(tmp_path / "again")
    same(again.model, loaded.model, batch)
    assert again.description.rank_pattern == pattern


def test_a_triplet_that_is_not_zero_is_kept_whatever_the_pattern_says(trained, batch, tmp_path):
    model, base = trained("lora")
    pattern = dict.fromkeys(prune(model, [3]), 1)
    expected = model(**batch).logits
    written = save(tmp_path / "run", model, base, rank_pattern=pattern)
    assert set(written.rank_pattern.values()) == {3}
    loaded = load_artefact(tmp_path / "run").model
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-6, atol=1e-6)


def test_a_half_precision_base_comes_back_in_half_precision(tiny, batch, same, tmp_path):
    model = tiny("bert").to(torch.bfloat16)
    widen_head(model)
    model.save_pretrained(tmp_path / "base")
    add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
    freeze_base(model, train="lora")
    model.bert.encoder.layer[0].attention.self.query.lora_E.data.fill_(2.0)
    save(tmp_path / "run", model, tmp_path / "base")
    first = load_artefact(tmp_path / "run")
    loaded = first.model
    assert loaded.dtype == torch.bfloat16
    assert {p.dtype for n, p in loaded.named_parameters() if is_head(loaded, n)} == {torch.float32}
    same(loaded, model, batch)
    same(load_artefact(tmp_path / "run", sibling=first).model, model, batch)


def test_a_regression_model_round_trips(trained, batch, same, tmp_path):
    model, base = trained("lora", num_labels=1)
    description = describe(model, base, is_regression=True, labels=None)
    save(tmp_path / "run", model, base, description=description)
    artefact = load_artefact(tmp_path / "run")
    assert artefact.description.is_regression
    assert artefact.description.labels is None
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    same(artefact.model, model, inputs)


def test_the_description_says_what_the_user_needs(trained, tmp_path):
    model, base = trained("lora+bitfit", num_labels=3)
    metrics = {"eval_accuracy": np.float64(0.5), "epoch": 3}
    save(tmp_path / "run", model, base, metrics=metrics)
    description = read_description(tmp_path / "run")
    assert description.trained == ("lora", "bitfit")
    assert description.labels == ("class0", "class1", "class2")
    assert description.num_labels == 3
    assert description.metrics == {"eval_accuracy": 0.5, "epoch": 3}
    assert description.base_model == str(base.resolve())
    assert description.model_type == "deberta-v2"
    assert (description.lora.init_rank, description.lora.lora_alpha) == (RANK, 16)
    assert len(description.lora.targets) == 12
    assert description.max_seq_length == 64
    assert set(description.versions) == {"adalora", "loralib", "torch", "transformers"}
    assert set(description.files) == {"adapter.safetensors", "head.safetensors"}


def test_the_label_names_reach_the_model(trained, tmp_path):
    model, base = trained("lora")
    save(tmp_path / "run", model, base)
    loaded = load_artefact(tmp_path / "run").model
    assert loaded.config.id2label == {0: "class0", 1: "class1"}


def test_the_tokenizer_travels_along(trained, tmp_path):
    model, base = trained("lora", "bert")
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "film": 5}
    raw = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32
    )
    save(tmp_path / "run", model, base, tokenizer=tokenizer)
    loaded = load_artefact(tmp_path / "run").tokenizer
    assert loaded("good film x")["input_ids"] == tokenizer("good film x")["input_ids"] == [4, 5, 1]


def test_other_files_in_the_folder_stay(trained, tmp_path):
    model, base = trained("lora")
    checkpoint = tmp_path / "run" / "checkpoint-10" / "trainer_state.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    save(tmp_path / "run", model, base)
    save(tmp_path / "run", model, base, overwrite=True)
    assert checkpoint.read_text() == "{}"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "README.md",
        "adalora.json",
        "adapter.safetensors",
        "checkpoint-10",
        "head.safetensors",
    ]


def test_an_artefact_is_replaced_only_on_demand(trained, batch, same, tmp_path):
    model, base = trained("full")
    save(tmp_path / "run", model, base)
    other, _ = trained("lora")
    with pytest.raises(UserError, match="already holds an artefact; pass overwrite=True"):
        save(tmp_path / "run", other, base)
    save(tmp_path / "run", other, base, overwrite=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    same(load_artefact(tmp_path / "run").model, other, batch)


def test_a_diverged_model_leaves_the_old_artefact(trained, batch, same, tmp_path):
    model, base = trained("lora")
    save(tmp_path / "run", model, base)
    before = model.classifier.bias.data.clone()
    model.classifier.bias.data[0] = float("inf")
    with pytest.raises(UserError, match=r"classifier\.bias holds NaN or infinity"):
        save(tmp_path / "run", model, base, overwrite=True)
    model.classifier.bias.data.copy_(before)
    same(load_artefact(tmp_path / "run").model, model, batch)


def test_metrics_that_cannot_be_written_leave_the_old_artefact(trained, tmp_path):
    model, base = trained("lora")
    save(tmp_path / "run", model, base, metrics={"a": 1})
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        save(tmp_path / "run", model, base, metrics={"a": object()}, overwrite=True)
    assert read_description(tmp_path / "run").metrics == {"a": 1}


def test_a_pattern_of_another_model_is_refused(trained, tmp_path):
    model, base = trained("lora")
    with pytest.raises(UserError, match=r"names elsewhere\.lora_E"):
        save(tmp_path / "run", model, base, rank_pattern={"elsewhere.lora_E": 2})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "adalora.json").unlink(), "no complete artefact"),
        (lambda run: (run / "adalora.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "adalora.json").write_text("[]"), "a JSON object was expected"),
        (lambda run: edit(run, format_version=99), "format version 99"),
        (lambda run: edit(run, format_version=None), "format version None"),
        (lambda run: edit(run, trained=None), "is not a description"),
        (lambda run: edit(run, lora={"lora_type": "svd"}), "is not a description"),
        (lambda run: edit(run, dtype="int3"), "dtype 'int3' is unknown"),
        (lambda run: edit(run, model_type="bert"), "was trained on a bert model"),
        (lambda run: (run / "head.safetensors").unlink(), r"head\.safetensors is missing"),
        (lambda run: cut(run / "adapter.safetensors"), r"adapter\.safetensors is \d+ bytes long"),
    ],
)
def test_a_damaged_artefact_is_refused_in_one_sentence(trained, tmp_path, damage, message):
    model, base = trained("lora")
    run = tmp_path / "run"
    save(run, model, base)
    damage(run)
    with pytest.raises(UserError, match=message):
        load_artefact(run)


def edit(run, **changes):
    path = run / "adalora.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def test_another_base_of_the_same_kind_is_refused_by_its_shapes(trained, tiny, tmp_path):
    model, base = trained("lora")
    save(tmp_path / "run", model, base)
    other = tmp_path / "other"
    tiny("deberta-v2", pooler_hidden_size=8).save_pretrained(other)
    with pytest.raises(UserError, match="another shape"):
        load_artefact(tmp_path / "run", base_model=str(other))


def test_the_base_may_have_moved(trained, batch, same, tmp_path):
    model, base = trained("lora")
    save(tmp_path / "run", model, base)
    base.rename(tmp_path / "moved")
    loaded = load_artefact(tmp_path / "run", base_model=str(tmp_path / "moved"))
    same(loaded.model, model, batch)


def test_a_shallower_base_is_refused_by_its_module_paths(trained, tiny, tmp_path):
    model, base = trained("lora")
    save(tmp_path / "run", model, base)
    other = tiny("deberta-v2")
    other.deberta.encoder.layer = other.deberta.encoder.layer[:1]
    other.config.num_hidden_layers = 1
    other.save_pretrained(tmp_path / "other")
    edit(tmp_path / "run", base_fingerprint=None)  # as artefacts of before the fingerprint
    with pytest.raises(UserError, match=r"has no module deberta\.encoder\.layer\.1"):
        load_artefact(tmp_path / "run", base_model=str(tmp_path / "other"))


def test_an_alpha_of_zero_means_the_initial_rank_after_pruning_as_well(tiny, batch, tmp_path):
    model = tiny("bert")
    model.save_pretrained(tmp_path / "base")
    add_lora(model, lora_type="svd", targets=["query"], init_rank=RANK, lora_alpha=0)
    freeze_base(model, train="lora")
    for layer in model.bert.encoder.layer:
        layer.attention.self.query.lora_E.data[1:3] = 5.0
    pattern = {f"bert.encoder.layer.{n}.attention.self.query.lora_E": 2 for n in range(2)}
    expected = model(**batch).logits
    save(tmp_path / "run", model, tmp_path / "base", rank_pattern=pattern)
    loaded = load_artefact(tmp_path / "run").model
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-6, atol=1e-6)

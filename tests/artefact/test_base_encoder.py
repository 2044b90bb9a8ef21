"""The fingerprint is of the base alone and by its stated definition; classifiers share one base."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.numpy import load_file

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.artefact.base_encoder import BaseEncoder
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError
from adalora.pretrained.deberta.patch import patch

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
TYPES = ("deberta-v2", "deberta", "bert", "roberta", "electra")


def fingerprint(model):
    return BaseEncoder.of(model).fingerprint()


def by_hand(file, prefix):
    """From the file of the base alone, by numpy and hashlib."""
    lines = []
    for name, array in load_file(file).items():
        short = name.removeprefix(prefix)
        if short == name or short.startswith("pooler."):
            continue
        shape = ",".join(map(str, array.shape))
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        lines.append(f"{short} {array.dtype} {shape} {digest}\n")
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("model_type", TYPES)
def test_the_fingerprint_is_what_its_definition_gives_from_the_bases_file(
    tiny, tmp_path, model_type
):
    model = tiny(model_type)
    model.save_pretrained(tmp_path)
    prefix = f"{model.base_model_prefix}."
    assert fingerprint(model) == by_hand(tmp_path / "model.safetensors", prefix)


@pytest.mark.parametrize("model_type", TYPES)
def test_adapters_head_patch_and_merging_do_not_change_it(tiny, model_type):
    before = fingerprint(tiny(model_type))
    assert fingerprint(tiny(model_type, num_labels=5)) == before
    model = tiny(model_type)
    add_lora(model, lora_type="svd", targets=NAMES, init_rank=2, lora_alpha=16)
    assert fingerprint(model) == before
    layers = [module for module in model.modules() if hasattr(module, "lora_E")]
    for layer in layers:
        torch.nn.init.ones_(layer.lora_E)
        layer.merge()
    assert not torch.equal(layers[0].weight, layers[0]._base_weight)
    assert fingerprint(model) == before
    other = tiny(model_type)
    add_bottleneck(other, adapter_type="houlsby", adapter_size=3)
    assert fingerprint(other) == before


def test_patching_does_not_change_it(tiny):
    model = tiny("deberta-v2")
    assert fingerprint(patch(model, position_query_bypass=True, unpad=False)) == fingerprint(model)


def test_one_bit_and_the_number_type_change_it(tiny):
    model = tiny("bert")
    before = fingerprint(model)
    weight = model.bert.encoder.layer[1].output.dense.weight.data
    weight.view(torch.int32)[3, 5] ^= 1
    assert fingerprint(model) != before
    weight.view(torch.int32)[3, 5] ^= 1
    assert fingerprint(model) == before
    assert fingerprint(model.to(torch.bfloat16)) != before


def test_half_precision_that_became_float32_is_float32(tiny):
    half = tiny("bert").to(torch.float16)
    there = fingerprint(half)
    assert fingerprint(half.float()) != there
    assert fingerprint(half.float()) == fingerprint(half.half().float())


def test_what_the_artefact_brings_itself_is_left_out(tiny):
    model = tiny("bert")
    base = BaseEncoder.of(model)
    biases = [name for name in base.parameters if name.endswith("bias")]
    before = base.fingerprint(without=biases)
    assert before != base.fingerprint()
    with torch.no_grad():
        for name in biases:
            base.parameters[name].add_(1)
    assert BaseEncoder.of(model).fingerprint(without=biases) == before


# --- in the artefact ------------------------------------------------------------------------------


def trained(tiny, folder, method="lora", model_type="bert", seed=0, **settings):
    """An artefact over the base that ``tiny`` always gives, which lies in ``folder/base``."""
    model = tiny(model_type, **settings)
    model.save_pretrained(folder / "base")
    if method == "lora":
        add_lora(model, lora_type="svd", targets=NAMES, init_rank=2, lora_alpha=16)
    freeze_base(model, train=method)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    description = Description.of(model, base_model=str(folder / "base"), method=method)
    run = folder / f"{method}-{seed}"
    save_artefact(run, model, tokenizer=None, description=description)
    return run


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_another_base_of_the_same_shape_is_refused_with_both_fingerprints(tiny, tmp_path, method):
    run = trained(tiny, tmp_path, method)
    right = load_artefact(run).description.base_fingerprint
    other = tiny("bert")
    other.bert.embeddings.word_embeddings.weight.data[7, 3] += 1e-3
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError) as refused:
        load_artefact(run, base_model=str(tmp_path / "other"))
    message = str(refused.value)
    assert right in message
    biases = BaseEncoder.of(other)
    held = [n for n in biases.parameters if n.endswith("bias")] if method == "bitfit" else []
    assert biases.fingerprint(without=held) in message


def test_an_artefact_of_before_the_fingerprint_still_loads(tiny, tmp_path):
    run = trained(tiny, tmp_path)
    manifest = run / "adalora.json"
    values = json.loads(manifest.read_text())
    for name in ("base_fingerprint", "checksums", "lineage", "created", "training", "text_columns"):
        del values[name]
    manifest.write_text(json.dumps(values))
    assert load_artefact(run).description.base_fingerprint is None


def test_full_fine_tuning_needs_no_base(tiny, tmp_path):
    run = trained(tiny, tmp_path, "full")
    artefact = load_artefact(run)
    assert artefact.description.base_fingerprint is None
    assert artefact.base is None


def test_saving_a_merged_model_writes_the_same_artefact(tiny, tmp_path):
    run = trained(tiny, tmp_path)
    artefact = load_artefact(run)
    for module in artefact.model.modules():
        if hasattr(module, "merge"):
            module.merge()
    again = save_artefact(
        tmp_path / "again", artefact.model, tokenizer=None, description=artefact.description
    )
    first = artefact.description
    assert again.base_fingerprint == first.base_fingerprint
    assert again.checksums == first.checksums


@pytest.mark.parametrize("model_type", TYPES)
def test_artefacts_on_a_shared_base_are_as_if_alone(tiny, batch, same, tmp_path, model_type):
    runs = [trained(tiny, tmp_path, method, model_type) for method in ("bitfit", "lora")]
    first = load_artefact(runs[0])
    second = load_artefact(runs[1], sibling=first)
    third = load_artefact(runs[0], sibling=first)
    same(second.model, load_artefact(runs[1]).model, batch)
    same(third.model, first.model, batch)
    same(first.model, load_artefact(runs[0]).model, batch)
    buffers = dict(second.model.named_buffers())
    assert not any(tensor.is_meta for tensor in buffers.values())
    for name, tensor in first.base.parameters.items():
        assert second.model.get_parameter(name).data_ptr() == tensor.data_ptr(), name


def test_a_base_of_another_architecture_is_refused(tiny, tmp_path):
    (tmp_path / "one").mkdir()
    one = load_artefact(trained(tiny, tmp_path / "one", model_type="roberta"))
    run = trained(tiny, tmp_path)
    with pytest.raises(UserError, match="trained on a bert model, and the base in memory is a rob"):
        load_artefact(run, sibling=one)

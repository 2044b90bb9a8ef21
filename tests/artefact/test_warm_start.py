"""Starting from stored adapters: this project's, and the original's ``.bin`` files."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.artefact.description import Description
from adalora.artefact.warm_start import load_bottleneck, load_lora
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError

NAMES = ("query", "layer.output")
RANK = 4


def adapted(tiny, lora_type="svd", rank=RANK, alpha=16, targets=NAMES, random=False, **settings):
    model = tiny("deberta-v2", **settings)
    add_lora(model, lora_type=lora_type, targets=targets, init_rank=rank, lora_alpha=alpha)
    freeze_base(model, train="lora")
    return scramble(model) if random else model


def scramble(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def lora_state(model):
    return {k: v for k, v in model.state_dict().items() if "lora_" in k or "ranknum" in k}


def store(model, path):
    description = Description.of(model, base_model="base", method="test")
    save_artefact(path, model, tokenizer=None, description=description)
    return path


@pytest.mark.parametrize("lora_type", ["frd", "svd"])
@pytest.mark.parametrize("form", ["bin", "whole", "wrapped", "safetensors", "artefact"])
def test_every_form_gives_the_stored_function(tiny, batch, same, tmp_path, lora_type, form):
    model = adapted(tiny, lora_type, random=True)
    path = tmp_path / "adapter.bin"
    state = model.state_dict()
    if form == "bin":
        torch.save(lora_state(model) | {k: v for k, v in state.items() if "classifier" in k}, path)
    elif form == "whole":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    elif form == "safetensors":
        path = tmp_path / "adapter.safetensors"
        save_file(state, path)
    else:
        path = store(model, tmp_path / "run")
    fresh = adapted(tiny, lora_type)
    filled = load_lora(fresh, path).filled
    assert len([name for name in filled if ".lora_" in name]) == (
        4 * 3 if lora_type == "svd" else 8
    )
    if form == "bin":
        # This one holds no pooler.
        fresh.pooler.load_state_dict(model.pooler.state_dict())
    same(fresh, model, batch)


@pytest.mark.parametrize(("alpha", "rank"), [(16, RANK), (32, RANK), (16, 6), (8, 5)])
@pytest.mark.parametrize("lora_type", ["frd", "svd"])
def test_another_scale_or_a_larger_rank_keeps_the_function(
    tiny, batch, tmp_path, lora_type, alpha, rank
):
    model = adapted(tiny, lora_type, random=True)
    path = store(model, tmp_path / "run")
    fresh = adapted(tiny, lora_type, rank=rank, alpha=alpha)
    load_lora(fresh, path)
    torch.testing.assert_close(fresh(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)


def test_a_pruned_artefact_fills_the_leading_triplets(tiny, batch, tmp_path):
    model = adapted(tiny, random=True)
    layers = [module for module in model.modules() if hasattr(module, "lora_E")]
    pattern = {}
    for (name, layer), rank in zip(
        ((n, m) for n, m in model.named_modules() if hasattr(m, "lora_E")),
        (0, 1, 3, RANK),
        strict=True,
    ):
        layer.lora_E.data[rank:] = 0
        pattern[f"{name}.lora_E"] = rank
    assert len(layers) == 4
    description = Description.of(model, base_model="base", method="test")
    save_artefact(
        tmp_path / "run", model, tokenizer=None, description=description, rank_pattern=pattern
    )
    fresh = scramble(adapted(tiny))
    load_lora(fresh, tmp_path / "run")
    torch.testing.assert_close(fresh(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    for key, rank in pattern.items():
        layer = fresh.get_submodule(key.removesuffix(".lora_E"))
        assert layer.r == RANK
        assert int((layer.lora_E != 0).sum()) == rank
        assert bool((layer.lora_A != 0).any(dim=1).all())  # the others can still be trained


def test_a_head_of_another_task_starts_anew_with_a_warning(tiny, tmp_path, caplog):
    path = store(adapted(tiny, random=True, num_labels=3), tmp_path / "run")
    fresh = adapted(tiny)
    before = fresh.classifier.weight.detach().clone()
    load_lora(fresh, path)
    assert torch.equal(fresh.classifier.weight, before)
    assert "head of another shape (classifier.bias, classifier.weight" in caplog.text


def test_the_base_of_the_file_is_not_read(tiny, tmp_path):
    model = adapted(tiny, random=True)
    state = model.state_dict()
    name = "deberta.embeddings.word_embeddings.weight"
    state[name] = state[name] + 1
    torch.save(state, tmp_path / "whole.bin")
    fresh = adapted(tiny)
    before = fresh.get_parameter(name).detach().clone()
    load_lora(fresh, tmp_path / "whole.bin")
    assert torch.equal(fresh.get_parameter(name), before)


def without(state, end):
    return {key: value for key, value in state.items() if not key.endswith(end)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "holds no LoRA parameters"),
        (lambda s: {"other.weight": torch.zeros(2)}, "holds no LoRA parameters"),
        (lambda s: without(s, "lora_E"), "need lora_A, lora_B, lora_E; choose the lora_type"),
        (
            lambda s: {k: v for k, v in s.items() if "layer.1." not in k},
            r"holds no LoRA parameters of deberta\.encoder\.layer\.1",
        ),
        (lambda s: s | {"far.lora_A": torch.zeros(1)}, "LoRA parameters of far, which"),
        (
            lambda s: {k: v[:, :-1] if k.endswith("lora_A") else v for k, v in s.items()},
            r"lora_A has shape \[4, 15\], which does not fit the model's \[4, 16\]",
        ),
        (
            lambda s: {k: v[0] if k.endswith("lora_A") else v for k, v in s.items()},
            "which does not fit",
        ),
        (lambda s: [1, 2], "does not hold a dictionary"),
        (lambda s: {"lora_A": "text"}, "does not hold a dictionary"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_filled(tiny, tmp_path, change, message):
    torch.save(change(lora_state(adapted(tiny, random=True))), tmp_path / "lora.bin")
    fresh = adapted(tiny)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_lora(fresh, tmp_path / "lora.bin")
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_a_larger_rank_than_the_models_is_refused(tiny, tmp_path):
    path = store(adapted(tiny, random=True), tmp_path / "run")
    with pytest.raises(UserError, match="the rank stored must be at most lora_r"):
        load_lora(adapted(tiny, rank=2), path)


def test_an_artefact_of_another_method_is_refused(tiny, tmp_path):
    model = tiny("deberta-v2")
    freeze_base(model, train="bitfit")
    path = store(model, tmp_path / "run")
    with pytest.raises(UserError, match="holds no lora adapters: it was trained by test"):
        load_lora(adapted(tiny), path)


def test_paths_that_hold_nothing_are_errors(tiny, tmp_path):
    model = adapted(tiny)
    with pytest.raises(UserError, match="does not exist"):
        load_lora(model, tmp_path / "nothing.bin")
    with pytest.raises(UserError, match=r"holds no adalora\.json"):
        load_lora(model, tmp_path)
    with pytest.raises(UserError, match="no LoRA layers"):
        load_lora(tiny("bert"), store(adapted(tiny), tmp_path / "run"))
    with pytest.raises(UserError, match=r"or pytorch_adapter\.bin"):
        load_bottleneck(model, tmp_path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_never_run(tiny, tmp_path):
    file = tmp_path / "lora.bin"
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"lora_A": Malicious(tmp_path / "ran")}, file)
        with pytest.raises(UserError, match="nothing else is read, for safety"):
            load_lora(adapted(tiny), file)
        assert not (tmp_path / "ran").exists()


def test_a_truncated_bin_is_refused(tiny, tmp_path):
    file = tmp_path / "lora.bin"
    torch.save(lora_state(adapted(tiny)), file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read as a state dictionary"):
        load_lora(adapted(tiny), file)


def bottlenecked(tiny, adapter_type="houlsby", size=3, random=False):
    model = tiny("deberta-v2")
    add_bottleneck(model, adapter_type=adapter_type, adapter_size=size)
    freeze_base(model, train="bottleneck")
    return scramble(model) if random else model


@pytest.mark.parametrize("form", ["original", "file", "artefact"])
def test_bottlenecks_are_read_from_every_form(tiny, batch, same, tmp_path, form):
    model = bottlenecked(tiny, random=True)
    state = model.state_dict()
    head = {k: v for k, v in state.items() if k.startswith(("pooler", "classifier"))}
    path = tmp_path / "run"
    if form == "original":
        path.mkdir()
        torch.save({k: v for k, v in state.items() if "adapter" in k}, path / "pytorch_adapter.bin")
        torch.save(head, path / "pytorch_model_head.bin")
    elif form == "file":
        torch.save(state, path)
    else:
        store(model, path)
    fresh = bottlenecked(tiny)
    load_bottleneck(fresh, path)
    same(fresh, model, batch)


def test_bottlenecks_that_do_not_fit_are_refused(tiny, tmp_path):
    path = store(bottlenecked(tiny, random=True), tmp_path / "run")
    with pytest.raises(UserError, match=r"does not fit .* holds .*attention"):
        load_bottleneck(bottlenecked(tiny, "pfeiffer"), path)
    with pytest.raises(UserError, match="adapters of another shape"):
        load_bottleneck(bottlenecked(tiny, size=4), path)
    narrow = store(bottlenecked(tiny, "pfeiffer", random=True), tmp_path / "narrow")
    with pytest.raises(UserError, match=r"lacks .*attention"):
        load_bottleneck(bottlenecked(tiny), narrow)
    with pytest.raises(UserError, match="no bottleneck adapters; call"):
        load_bottleneck(tiny("bert"), path)

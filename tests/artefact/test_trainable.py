"""Training checkpoints hold what trains, exactly, and refuse anything else."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.adapters.trainable import load_trainable, save_trainable, trainable_state
from adalora.errors import UserError


@pytest.fixture
def prepared(tiny):
    def make(method="lora", model_type="deberta-v2", rank=3):
        model = tiny(model_type)
        if method == "lora":
            add_lora(model, lora_type="svd", targets=["query"], init_rank=rank, lora_alpha=16)
        if method == "bottleneck":
            add_bottleneck(model, adapter_type="houlsby", adapter_size=3)
        freeze_base(model, train=method)
        return model

    return make


def scramble(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model


@pytest.mark.parametrize("method", ["lora", "bottleneck", "bitfit", "full"])
def test_what_is_saved_is_what_is_loaded(prepared, batch, same, tmp_path, method):
    model = scramble(prepared(method))
    expected = model(**batch).logits
    save_trainable(model, tmp_path / "t.safetensors")
    fresh = prepared(method)
    assert not torch.equal(fresh(**batch).logits, expected)
    load_trainable(fresh, tmp_path / "t.safetensors")
    same(fresh, model, batch)


def test_only_trained_parameters_and_rank_counts_are_saved(prepared, tmp_path):
    model = prepared()
    save_trainable(model, tmp_path / "t.safetensors")
    names = set(load_file(tmp_path / "t.safetensors"))
    assert names == set(trainable_state(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names - trained == {
        name for name, _ in model.named_parameters() if name.endswith("ranknum")
    }


def test_the_state_is_a_copy(prepared):
    model = prepared()
    state = trainable_state(model)
    before = state["classifier.weight"].clone()
    scramble(model)
    assert torch.equal(state["classifier.weight"], before)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_another_models_file_is_refused_and_nothing_is_copied(prepared, tmp_path, change):
    model = prepared()
    state = trainable_state(model)
    name = "classifier.bias"
    if change == "missing":
        del state[name]
    elif change == "extra":
        state["elsewhere.lora_A"] = torch.zeros(2)
    else:
        state[name] = torch.zeros(7)
    file = tmp_path / "t.safetensors"
    save_file({key: value + 1 for key, value in state.items()}, file)
    before = trainable_state(model)
    message = {
        "missing": r"lacks classifier\.bias",
        "extra": r"holds elsewhere\.lora_A",
        "shape": r"another shape: classifier\.bias \(\[7\], expected \[2\]\)",
    }[change]
    with pytest.raises(UserError, match=message):
        load_trainable(model, file)
    after = trainable_state(model)
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_damaged_file_is_refused(prepared, tmp_path):
    model = prepared()
    file = tmp_path / "t.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        load_trainable(model, file)
    save_trainable(model, file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="is damaged"):
        load_trainable(model, file)
    torch.save(trainable_state(model), file)
    with pytest.raises(UserError, match="pickle file"):
        load_trainable(model, file)


def test_a_diverged_model_is_not_written(prepared, tmp_path):
    model = prepared()
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(UserError, match=r"classifier\.bias holds NaN or infinity"):
        save_trainable(model, tmp_path / "t.safetensors")
    assert list(tmp_path.iterdir()) == []

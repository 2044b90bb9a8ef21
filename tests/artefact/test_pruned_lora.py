"""Plain LoRA that was pruned: stored by its survivors, rebuilt, merged, started from, described."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from adalora.adapters.freeze import count_parameters, freeze_base
from adalora.adapters.lora import add_lora
from adalora.adapters.merge import merge_adapters
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.warm_start import load_lora
from adalora.artefact.writer import save_artefact
from adalora.commands.info import facts_of
from adalora.errors import UserError

NAMES = ("query", "intermediate", "layer.output")
RANK = 4


@pytest.fixture
def pruned(tiny, tmp_path):
    """A model whose doublets are zero but for the last ones of each matrix, its base, its ranks."""

    def make(ranks):
        model = tiny("deberta-v2")
        model.save_pretrained(tmp_path / "base")
        add_lora(model, lora_type="frd", targets=NAMES, init_rank=RANK, lora_alpha=16)
        freeze_base(model, train="lora")
        layers = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]
        pattern = {}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
            for turn, (name, layer) in enumerate(layers):
                pattern[f"{name}.lora_E"] = rank = ranks[turn % len(ranks)]
                layer.lora_A[: RANK - rank] = 0
                layer.lora_B[:, : RANK - rank] = 0
        return model, pattern

    return make


def save(folder, model, base, pattern=None):
    description = Description.of(model, base_model=str(base), method="pruned LoRA")
    return save_artefact(
        folder, model, tokenizer=None, description=description, rank_pattern=pattern
    )


@pytest.mark.parametrize("ranks", [[0, 1, RANK, 2, 3], [0], [1]])
def test_it_is_stored_by_its_survivors_and_computes_the_same(pruned, batch, same, tmp_path, ranks):
    model, pattern = pruned(ranks)
    expected = model(**batch).logits
    written = save(tmp_path / "run", model, tmp_path / "base", pattern)
    assert written.rank_pattern == pattern
    assert written.lora.init_rank == RANK
    stored = load_file(tmp_path / "run" / "adapter.safetensors")
    kept = count_parameters(model, pattern).adapter_kept
    assert sum(tensor.numel() for tensor in stored.values()) == kept
    loaded = load_artefact(tmp_path / "run")
    torch.testing.assert_close(loaded.model(**batch).logits, expected, rtol=1e-6, atol=1e-6)
    # And once more, from the model that was loaded: the scale still divides by the initial rank.
    save_artefact(tmp_path / "again", loaded.model, tokenizer=None, description=loaded.description)
    again = load_artefact(tmp_path / "again")
    same(again.model, loaded.model, batch)
    assert again.description.rank_pattern == pattern


def test_a_description_of_the_loaded_model_knows_the_initial_rank(pruned, batch, tmp_path):
    model, pattern = pruned([1, 2])
    save(tmp_path / "run", model, tmp_path / "base", pattern)
    loaded = load_artefact(tmp_path / "run").model
    written = save(tmp_path / "again", loaded, tmp_path / "base")
    assert (written.lora.init_rank, written.rank_pattern) == (RANK, pattern)
    again = load_artefact(tmp_path / "again").model
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits, rtol=1e-6, atol=1e-6)


def test_a_doublet_that_is_not_zero_is_kept_whatever_the_pattern_says(pruned, batch, tmp_path):
    model, pattern = pruned([3])
    written = save(tmp_path / "run", model, tmp_path / "base", dict.fromkeys(pattern, 1))
    assert set(written.rank_pattern.values()) == {3}


def test_plain_lora_that_was_not_pruned_is_stored_whole_even_where_it_is_zero(pruned, tmp_path):
    model, _ = pruned([2])
    written = save(tmp_path / "run", model, tmp_path / "base")
    assert written.rank_pattern == {}
    stored = load_file(tmp_path / "run" / "adapter.safetensors")
    assert {t.shape[0] for n, t in stored.items() if n.endswith("lora_A")} == {RANK}


def test_merged_it_computes_the_same(pruned, batch, tmp_path):
    model, pattern = pruned([0, 1, RANK])
    expected = model(**batch).logits
    save(tmp_path / "run", model, tmp_path / "base", pattern)
    loaded = load_artefact(tmp_path / "run").model
    # Two of six matrices have rank 0 and are plain layers already.
    assert merge_adapters(loaded) == 4
    torch.testing.assert_close(loaded(**batch).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [RANK, 6])
def test_a_run_can_start_from_it(pruned, tiny, batch, tmp_path, rank):
    model, pattern = pruned([0, 1, RANK, 2])
    expected = model(**batch).logits
    save(tmp_path / "run", model, tmp_path / "base", pattern)
    fresh = tiny("deberta-v2")
    add_lora(fresh, lora_type="frd", targets=NAMES, init_rank=rank, lora_alpha=16)
    load_lora(fresh, tmp_path / "run")
    torch.testing.assert_close(fresh(**batch).logits, expected, rtol=1e-5, atol=1e-5)


def test_its_facts_count_doublets(pruned, tmp_path):
    model, pattern = pruned([1, 2, 3])
    save(tmp_path / "run", model, tmp_path / "base", pattern)
    facts = facts_of(tmp_path / "run")
    assert facts["triplets"] == {"kept": 12, "initial": 24}


def test_ranks_that_the_tensors_do_not_have_are_refused(pruned, tmp_path):
    model, pattern = pruned([1])
    save(tmp_path / "run", model, tmp_path / "base", pattern)
    manifest = tmp_path / "run" / "adalora.json"
    description = json.loads(manifest.read_text())
    description["rank_pattern"] = dict.fromkeys(pattern, 2)
    manifest.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"says rank 2 of .*one of shape"):
        load_artefact(tmp_path / "run")


def test_a_pattern_of_another_model_is_refused(pruned, tmp_path):
    model, pattern = pruned([1])
    with pytest.raises(UserError, match=r"names elsewhere\.lora_E, and the model has no such"):
        save(tmp_path / "run", model, tmp_path / "base", {**pattern, "elsewhere.lora_E": 1})
    with pytest.raises(UserError, match="keeps 5 triplets"):
        count_parameters(model, dict.fromkeys(pattern, 5))

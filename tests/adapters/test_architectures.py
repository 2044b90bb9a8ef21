"""Encoders known by their modules' names alone, from the factors on to PEFT's folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import BY_NAME, INNER, WIDTH, tiny_batch, tiny_classifier

from adalora.adapters.freeze import freeze_base
from adalora.adapters.head import head_modules, is_head
from adalora.adapters.lora import add_lora
from adalora.adapters.merge import merge_adapters
from adalora.adapters.peft_method import add_peft
from adalora.adapters.targets import NAMES, find_targets
from adalora.artefact.description import Description
from adalora.artefact.reader import load_artefact
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError
from adalora.export.convert import export_run
from adalora.export.peft_import import import_adapter
from adalora.pretrained.unpadded import unpad_encoder

LAYER = {
    "albert": "albert.encoder.albert_layer_groups.0.albert_layers.0",
    "camembert": "roberta.encoder.layer.{}",
    "distilbert": "distilbert.transformer.layer.{}",
    "modernbert": "model.layers.{}",
    "mpnet": "mpnet.encoder.layer.{}",
    "xlm-roberta": "roberta.encoder.layer.{}",
}
ROBERTA = "attention.self.query attention.self.key attention.self.value intermediate.dense "
ROBERTA += "output.dense attention.output.dense"
MODULES = {
    "albert": "attention.query attention.key attention.value ffn ffn_output attention.dense",
    "camembert": ROBERTA,
    "distilbert": "attention.q_lin attention.k_lin attention.v_lin ffn.lin1 ffn.lin2 "
    "attention.out_lin",
    "modernbert": "attn.Wqkv attn.Wqkv attn.Wqkv mlp.Wi mlp.Wo attn.Wo",
    "mpnet": "attention.attn.q attention.attn.k attention.attn.v intermediate.dense output.dense "
    "attention.attn.o",
    "xlm-roberta": ROBERTA,
}
#: Weights that let an update of any matrix be seen in the logits.
tiny = partial(tiny_classifier, initializer_range=0.3, num_labels=3)


def paths(kind: str, name: str) -> list[str]:
    module = MODULES[kind].split()[NAMES.index(name)]
    return list(dict.fromkeys(f"{LAYER[kind].format(n)}.{module}" for n in range(2)))


def logits(model: Any) -> torch.Tensor:
    batch = tiny_batch()
    batch.pop("labels")
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**batch).logits
    return result


def adapted(kind: str, lora_type: str = "svd") -> Any:
    model = tiny(kind)
    add_lora(model, lora_type=lora_type, targets=NAMES, init_rank=2, lora_alpha=4)
    freeze_base(model, train="lora")
    return model


@pytest.mark.parametrize("kind", BY_NAME)
def test_each_name_is_its_matrix_in_every_layer(kind):
    model = tiny(kind)
    fused = kind == "modernbert"
    for name in NAMES:
        asked = NAMES[:3] if fused and name in NAMES[:3] else (name,)
        assert list(find_targets(model, asked)) == paths(kind, name), name
    sizes = {tuple(m.weight.shape) for m in find_targets(model, ["intermediate"]).values()}
    assert sizes == {(2 * INNER if fused else INNER, WIDTH)}  # ModernBERT's is gated
    assert len(find_targets(model, NAMES)) == (6 if kind == "albert" else 8 if fused else 12)
    assert not [path for path in find_targets(model, ["re:.*"]) if is_head(model, path)]


def test_the_fused_matrix_of_modernbert_is_adapted_whole():
    with pytest.raises(UserError, match="by one matrix, so 'query' cannot be adapted without key"):
        find_targets(tiny("modernbert"), ["query", "layer.output"])


@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("name", NAMES)
def test_the_update_is_applied_where_its_name_says(kind, name):
    model, plain = adapted(kind), tiny(kind)
    before = logits(plain)
    assert torch.allclose(logits(model), before, atol=1e-6)
    for path in paths(kind, name):
        layer = model.get_submodule(path)
        with torch.no_grad():
            layer.lora_E.fill_(1.0)
            update = layer.scale * layer.lora_B @ (layer.lora_E * layer.lora_A)
            plain.get_submodule(path).weight += update
    expected = logits(plain)
    assert float((expected - before).abs().max()) > 1e-4
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BY_NAME)
def test_trained_saved_loaded_merged_and_handed_to_peft(kind, tmp_path: Path):
    tiny(kind).save_pretrained(tmp_path / "base")
    model = adapted(kind)
    unpad_encoder(model)  # as a run loads it
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        model(**tiny_batch()).loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} >= {"classifier"} <= set(head_modules(model))
    outside = [n for n in moved if not is_head(model, n)]
    assert {n.rpartition(".")[2] for n in outside} == {"lora_A", "lora_B", "lora_E"}
    assert {n.rpartition(".")[0] for n in outside} == {p for n in NAMES for p in paths(kind, n)}
    expected = logits(model)
    description = Description.of(
        model, base_model=str(tmp_path / "base"), method="AdaLoRA", labels=("a", "b", "c")
    )
    save_artefact(tmp_path / "run" / "model", model, tokenizer=None, description=description)
    loaded = load_artefact(tmp_path / "run")
    assert torch.equal(logits(loaded.model), expected)
    again = load_artefact(tmp_path / "run", sibling=loaded)
    assert torch.equal(logits(again.model), expected)
    # ALBERT's one layer is merged once, though it computes twice.
    assert merge_adapters(model) == len(find_targets(tiny(kind), NAMES))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BY_NAME)
@pytest.mark.parametrize("to", ["lora", "peft-adalora", "merged"])
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
def test_what_is_exported_computes_the_same(kind, to, tmp_path: Path):
    if to != "merged":
        pytest.importorskip("peft", reason="needs the extra adalora[peft]")
    tiny(kind).save_pretrained(tmp_path / "base")
    model = adapted(kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = logits(model)
    description = Description.of(
        model, base_model=str(tmp_path / "base"), method="AdaLoRA", labels=("a", "b", "c")
    )
    save_artefact(tmp_path / "run" / "model", model, tokenizer=None, description=description)
    # The export is read back by what reads it, and compared, before it gets its name.
    assert export_run(tmp_path / "run", to=to, output=tmp_path / to).agreement.difference < 1e-4
    if to != "merged":
        import_adapter(tmp_path / to, output=tmp_path / "back", labels=("a", "b", "c"))
        found = logits(load_artefact(tmp_path / "back").model)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["LORA", "PROMPT_TUNING"])
def test_in_a_wrapper_of_peft_the_encoder_is_no_head(method):
    pytest.importorskip("peft", reason="needs the extra adalora[peft]")
    values = {"peft_type": method}
    values |= {"target_modules": ["query", "key", "value"]} if method == "LORA" else {}
    values |= {"num_virtual_tokens": 2} if method != "LORA" else {}
    model = add_peft(tiny("modernbert"), values, total_steps=None, source="test")
    heads = {name for name, _ in model.named_parameters() if is_head(model, name)}
    assert any("classifier" in name for name in heads)
    assert not [name for name in heads if ".layers." in name or "prompt" in name]


def test_an_encoder_without_biases_trains_none():
    with pytest.raises(UserError, match=r"biases cannot train: ModernBert\w+ has none"):
        freeze_base(tiny("modernbert"), train="bitfit")

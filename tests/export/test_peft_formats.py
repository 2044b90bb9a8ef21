"""``lora`` and ``peft-adalora``: PEFT itself reads them and computes what the run computes."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from adalora.artefact.description import read_description
from adalora.errors import UserError
from adalora.export.convert import export_run

peft = pytest.importorskip("peft", reason="needs the extra adalora[peft]")

# PEFT says these of its own files as well: its AdaLoRA keys end in .lora_E, and rank 0 is empty.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*invalid shape"),
]
NAMES = ["bert", "roberta", "electra", "deberta", "deberta-v2"]
METHODS = [("lora", "svd"), ("lora", "frd"), ("lora", "pruned"), ("peft-adalora", "svd")]
CASES = [(name, *method) for name in NAMES for method in METHODS]


# A built-in base is found by its name, and computes as a DeBERTa-v2 does.
@pytest.mark.parametrize(("name", "to", "method"), [*CASES, ("nano", "lora", "svd")])
def test_peft_gets_the_same_logits_loaded_and_merged(
    run_of, base_of, plain_base, expected_of, logits_of, difference, tmp_path, name, to, method
):
    run = run_of(name, method)
    batches, expected = expected_of(run)
    done = export_run(run, to=to, output=tmp_path / "out")
    model = peft.PeftModel.from_pretrained(plain_base(base_of(name)), tmp_path / "out")
    assert difference(logits_of(model, batches), expected) < 1e-5
    assert done.agreement.difference < 1e-5
    merged = model.merge_and_unload()
    assert not [n for n, _ in merged.named_parameters() if "lora" in n]
    assert difference(logits_of(merged, batches), expected) < 1e-5


@pytest.mark.parametrize("to", ["lora", "peft-adalora"])
def test_peft_saves_it_again_as_it_was(run_of, base_of, plain_base, tmp_path, to):
    export_run(run_of("bert"), to=to, output=tmp_path / "out")
    model = peft.PeftModel.from_pretrained(
        plain_base(base_of("bert")), tmp_path / "out", is_trainable=True
    )
    model.save_pretrained(tmp_path / "again")
    one = load_file(tmp_path / "out" / "adapter_model.safetensors")
    two = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@pytest.mark.parametrize(("method", "scale"), [("svd", 8 / (4 + 1e-5)), ("pruned", 8 / 4)])
def test_lora_leaves_rank_0_out_and_touches_nothing_but_the_targets(
    run_of, base_of, plain_base, tmp_path, method, scale
):
    run = run_of("bert", method)
    export_run(run, to="lora", output=tmp_path / "out")
    pattern = read_description(run / "model").rank_pattern
    assert 0 in pattern.values()
    model = peft.PeftModel.from_pretrained(plain_base(base_of("bert")), tmp_path / "out")
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.Linear)
    }
    ranks = {f"{name}.lora_E": layer.r["default"] for name, layer in layers.items()}
    assert ranks == {name: rank for name, rank in pattern.items() if rank}
    for layer in layers.values():
        assert layer.scaling["default"] == pytest.approx(scale, rel=1e-12)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["modules_to_save"]) == ["bert.pooler", "classifier"]


def test_plain_lora_needs_no_patterns(run_of, tmp_path):
    export_run(run_of("bert", "frd"), to="lora", output=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}


def test_an_export_is_the_same_bytes_every_time(run_of, tree, tmp_path):
    for name in ("one", "two"):
        export_run(run_of("bert"), to="lora", output=tmp_path / name)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_peft_adalora_holds_every_matrix_and_slices_by_the_pattern(run_of, tmp_path):
    run = run_of("deberta-v2")
    export_run(run, to="peft-adalora", output=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    ours = read_description(run / "model").rank_pattern
    assert {name: sum(marks) for name, marks in config["rank_pattern"].items()} == ours
    assert {len(marks) for marks in config["rank_pattern"].values()} == {4}
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, rank in ours.items():
        assert tensors[f"base_model.model.{name}"].shape == (rank, 1)


def test_an_alpha_of_zero_means_the_initial_rank(
    run_of, base_of, plain_base, expected_of, logits_of, difference, tmp_path
):
    run = run_of("bert", lora_alpha=0)
    batches, expected = expected_of(run)
    for to in ("lora", "peft-adalora"):
        export_run(run, to=to, output=tmp_path / to)
        model = peft.PeftModel.from_pretrained(plain_base(base_of("bert")), tmp_path / to)
        assert difference(logits_of(model, batches), expected) < 1e-5


def test_where_every_matrix_has_rank_0_peft_adalora_and_merged_remain(
    run_of, base_of, plain_base, expected_of, logits_of, difference, tmp_path
):
    run = run_of("bert", ranks=(0,))
    with pytest.raises(UserError, match="Every matrix of this run was pruned to rank 0"):
        export_run(run, to="lora", output=tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    export_run(run, to="merged", output=tmp_path / "merged")
    export_run(run, to="peft-adalora", output=tmp_path / "adalora")
    model = peft.PeftModel.from_pretrained(plain_base(base_of("bert")), tmp_path / "adalora")
    batches = [{"input_ids": torch.tensor([[5, 6, 7]])}]
    merged = type(model.base_model.model).from_pretrained(tmp_path / "merged")
    assert difference(logits_of(model, batches), logits_of(merged, batches)) < 1e-5


@pytest.mark.parametrize(
    ("method", "settings", "to", "message"),
    [
        ("frd", {}, "peft-adalora", "LoRA (frd), which peft-adalora does not hold;.*--to lora"),
        ("pruned", {}, "peft-adalora", "LoRA (frd), which peft-adalora does not hold;.*--to lora"),
        ("houlsby", {}, "lora", "bottleneck adapters (houlsby), which lora does.*with --to onnx"),
        ("full", {}, "lora", "trained the whole model, which lora does not hold;.*--to merged"),
        ("bitfit", {}, "peft-adalora", "the encoder's biases, which peft-ada.*--to merged"),
        ("svd+bitfit", {}, "lora", "LoRA (svd) and the encoder's biases, which lora.*--to merged"),
        ("svd", {"bypass": True}, "lora", "--position_query_bypass"),
        ("svd", {"bypass": True}, "peft-adalora", "--position_query_bypass"),
    ],
)
def test_what_peft_cannot_hold_is_refused_by_name(run_of, tmp_path, method, settings, to, message):
    run = run_of("deberta-v2", method, **settings)
    message = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(UserError) as caught:
        export_run(run, to=to, output=tmp_path / "out")
    assert re.search(message, str(caught.value))
    assert list(tmp_path.iterdir()) == []

"""``merged``: transformers alone reads it, and it computes what the run computes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from adalora.errors import UserError
from adalora.export.convert import export_run

PROGRAM = """
import json, sys
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], top_k=None)
answers = classify(["a good film", "the plot was not very good"])
ours = [name for name in sys.modules if name.split(".")[0] in ("adalora", "loralib")]
print(json.dumps([answers, ours]))
"""


@pytest.mark.parametrize("name", ["nano", "bert", "roberta", "electra", "deberta", "deberta-v2"])
@pytest.mark.parametrize("method", ["svd", "frd"])
def test_transformers_alone_gets_the_same_logits(
    run_of, expected_of, logits_of, difference, tmp_path, name, method
):
    batches, expected = expected_of(run_of(name, method))
    done = export_run(run_of(name, method), to="merged", output=tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(model).__module__.startswith("transformers.models.")
    assert {type(m).__module__.split(".")[0] for m in model.modules()} == {"torch", "transformers"}
    assert difference(logits_of(model, batches), expected) < 1e-5
    assert done.agreement.difference < 1e-5


@pytest.mark.parametrize("method", ["bitfit", "full", "svd+bitfit", "pruned"])
def test_whatever_has_plain_weights_is_merged(
    run_of, expected_of, logits_of, difference, tmp_path, method
):
    batches, expected = expected_of(run_of("bert", method))
    export_run(run_of("bert", method), to="merged", output=tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert difference(logits_of(model, batches), expected) < 1e-5


@pytest.mark.slow
def test_a_pipeline_answers_with_the_labels_and_without_our_packages(run_of, tmp_path):
    export_run(run_of("nano"), to="merged", output=tmp_path / "out")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    answers, ours = json.loads(result.stdout.splitlines()[-1])
    assert ours == []
    assert [{entry["label"] for entry in answer} for answer in answers] == [
        {"no", "maybe", "yes"}
    ] * 2


def test_the_configuration_is_that_of_a_classifier_and_names_nothing_of_ours(run_of, tmp_path):
    export_run(run_of("nano"), to="merged", output=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["DebertaV2ForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert config["problem_type"] == "single_label_classification"
    assert config["dtype"] == "float32"
    assert "position_query_bypass" not in config
    names = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in names if "lora" in name or "ranknum" in name]
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a good film")["input_ids"]


def test_a_regression_stays_one(run_of, expected_of, logits_of, difference, tmp_path):
    run = run_of("bert", num_labels=1)
    batches, expected = expected_of(run)
    export_run(run, to="merged", output=tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.problem_type == "regression"
    assert difference(logits_of(model, batches), expected) < 1e-5


def test_the_merged_weight_is_base_plus_update(run_of, tmp_path):
    run = run_of("bert", "frd")
    export_run(run, to="merged", output=tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    adapter = load_file(run / "model" / "adapter.safetensors")
    base = load_file(
        json.loads((run / "model" / "adalora.json").read_text())["base_model"]
        + "/model.safetensors"
    )
    path = "bert.encoder.layer.1.attention.self.key"
    update = adapter[f"{path}.lora_B"] @ adapter[f"{path}.lora_A"] * (8 / 4)
    torch.testing.assert_close(merged[f"{path}.weight"], base[f"{path}.weight"] + update)
    assert torch.equal(merged[f"{path}.bias"], base[f"{path}.bias"])


def test_a_half_precision_base_is_merged_in_float32_so_that_small_updates_survive(
    run_of, expected_of, logits_of, difference, tmp_path
):
    run = run_of("bert", dtype=torch.bfloat16)
    batches, expected = expected_of(run)
    export_run(run, to="merged", output=tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32 == AutoConfig.from_pretrained(tmp_path / "out").dtype
    assert difference(logits_of(model, batches), expected) < 1e-5


def test_the_bypass_cannot_be_merged(run_of, tmp_path):
    with pytest.raises(UserError, match="--position_query_bypass, where the positional query"):
        export_run(run_of("deberta-v2", bypass=True), to="merged", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bottleneck_adapters_cannot_be_merged(run_of, tmp_path):
    with pytest.raises(UserError, match=r"bottleneck adapters \(houlsby\).*--to onnx"):
        export_run(run_of("bert", "houlsby"), to="merged", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []

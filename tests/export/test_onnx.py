"""``onnx``: ONNX Runtime computes what the run computes, at any batch and length."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from transformers import AutoTokenizer

from adalora.artefact.reader import load_artefact
from adalora.cli import main
from adalora.export import plain

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra adalora[export]")
pytest.importorskip("onnxscript", reason="needs the extra adalora[export]")


def run_graph(path, batches):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = []
    for batch in batches:
        types = {"token_type_ids": torch.zeros_like(batch["input_ids"])}
        feed = {name: (types | batch)[name].numpy() for name in names}
        found.append(torch.from_numpy(session.run(["logits"], feed)[0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "bypass", "files"),
    [
        ("deberta-v2", "svd", False, ["model.onnx"]),
        ("bert", "svd", False, ["model.onnx", "model.onnx.data"]),  # as a model beyond 2 GB
        ("deberta-v2", "svd", True, ["model.onnx"]),  # stays unmerged in the graph
        ("bert", "houlsby", False, ["model.onnx"]),  # the bottlenecks are in the graph
    ],
)
def test_onnx_runtime_gets_the_same_logits_at_five_shapes_and_the_command_says_so(
    run_of, expected_of, difference, tmp_path, monkeypatch, capfd, name, method, bypass, files
):
    if len(files) > 1:
        monkeypatch.setattr(plain, "_LARGEST_SINGLE_FILE", 0)
    run, out = run_of(name, method, bypass=bypass), tmp_path / "out"
    batches, expected = expected_of(run)
    assert len({batch["input_ids"].shape for batch in batches}) == 5
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as raised:
        assert main(["export", str(run), "--to", "onnx", "--output", str(out)]) == 0
    printed = capfd.readouterr()
    assert difference(run_graph(out / "model.onnx", batches), expected) < 1e-4
    assert sorted(path.name for path in out.glob("model*")) == files
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert AutoTokenizer.from_pretrained(out)("a good film")["input_ids"]

    # The command says how well it agrees, and nothing of the exporter's.
    lines = printed.out.splitlines()
    assert lines[0].startswith("Wrote ")
    agreement = "Checked on 5 random batches: its logits differ from the run's by at most "
    assert lines[1].startswith(agreement)
    assert float(lines[1].removeprefix(agreement).split()[0].rstrip(".,;")) < 1e-4
    assert len(lines) == 4
    assert printed.err == ""
    assert [str(warning.message) for warning in raised] == []


def test_the_model_is_as_it_was_even_if_the_exporter_fails(run_of, tmp_path, monkeypatch):
    artefact = load_artefact(run_of("deberta-v2") / "model")
    model = artefact.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def fail(*arguments, **settings):
        merged = [module.merged for module in model.modules() if hasattr(module, "merged")]
        seen.append((model.deberta.unpad, set(merged)))
        raise RuntimeError("the exporter fails")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError, match="the exporter fails"):
        plain.Onnx().write(artefact, tmp_path / "out")
    assert seen == [(False, {True})]
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert model.deberta.unpad
    assert not any(getattr(module, "merged", False) for module in model.modules())

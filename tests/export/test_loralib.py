"""``loralib``: the original's state dictionary, and ``--lora_path`` reads it back."""

from __future__ import annotations

import pytest
import torch

from adalora.adapters.lora import add_lora
from adalora.artefact.warm_start import load_lora
from adalora.errors import UserError
from adalora.export.convert import export_run
from adalora.pretrained.loading import load_classifier

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")


@pytest.mark.parametrize(
    ("name", "method", "bypass"),
    [
        ("nano", "svd", False),
        ("bert", "svd", False),
        ("bert", "frd", False),
        ("bert", "pruned", False),
        ("deberta-v2", "svd", True),
    ],
)
def test_lora_path_reads_it_back(
    run_of, base_of, expected_of, logits_of, difference, tmp_path, name, method, bypass
):
    run = run_of(name, method, bypass=bypass)
    batches, expected = expected_of(run)
    export_run(run, to="loralib", output=tmp_path / "run.bin")
    model = load_classifier(str(base_of(name)), num_labels=3, position_query_bypass=bypass)
    kind = "svd" if method == "svd" else "frd"
    add_lora(model, lora_type=kind, targets=NAMES, init_rank=4, lora_alpha=8)
    load_lora(model, tmp_path / "run.bin")
    assert difference(logits_of(model, batches), expected) < 1e-5


def test_the_file_is_what_the_original_loads(run_of, base_of, tmp_path):
    """A state dictionary for ``load_state_dict(strict=False)``, in the initial rank's shapes."""
    export_run(run_of("bert"), to="loralib", output=tmp_path / "run.bin")
    state = torch.load(tmp_path / "run.bin", weights_only=True)
    model = load_classifier(str(base_of("bert")), num_labels=3)
    add_lora(model, lora_type="svd", targets=NAMES, init_rank=4, lora_alpha=8)
    wanted = {n: p.shape for n, p in model.named_parameters() if "lora_" in n}
    assert {n: t.shape for n, t in state.items() if "lora_" in n} == wanted
    assert {n for n in state if "lora_" not in n} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert model.load_state_dict(state, strict=False).unexpected_keys == []


def test_a_run_without_lora_is_refused(run_of, tmp_path):
    with pytest.raises(
        UserError,
        match=r"the whole model, which loralib does not hold.*--to merged",
    ):
        export_run(run_of("bert", "full"), to="loralib", output=tmp_path / "run.bin")
    assert list(tmp_path.iterdir()) == []

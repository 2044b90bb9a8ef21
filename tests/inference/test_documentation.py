"""What docs/artefact.md and docs/using.md show runs as it stands and tells the truth."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

from adalora.artefact.reader import load_artefact
from adalora.builtin import nano_path
from adalora.builtin.miniature import generate
from adalora.cli import main


def blocks(project_root, name, language):
    text = (project_root / "docs" / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def place(mnli, make, tmp_path, monkeypatch):
    """A folder with the runs and files that the documentation speaks of."""
    shutil.copytree(mnli, tmp_path / "output" / "mnli")
    sentiment = make(labels=("negative", "positive"), columns=("sentence",), task="mini-sst2")
    shutil.copytree(sentiment, tmp_path / "output" / "sst2" / "model")
    pairs = [f"{n},a bird {n} sang,a dog ran\n" for n in range(3)]
    (tmp_path / "pairs.csv").write_text("id,premise,hypothesis\n" + "".join(pairs))
    (tmp_path / "reviews.txt").write_text("the garden was lovely\na bird sang\n")
    rows = [f'"{r["sentence"]}",{r["label"]}\n' for r in generate("sst2", "validation")[:20]]
    (tmp_path / "dev.csv").write_text("sentence,label\n" + "".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(3))
def test_a_shown_program_runs(place, project_root, capsys, number):
    programs = blocks(project_root, "using.md", "python")
    assert len(programs) == 3
    exec(programs[number], {})
    printed = capsys.readouterr().out.splitlines()
    assert printed
    if number == 2:
        assert printed[2] == "nli"


def test_the_shown_commands_run(place, project_root, monkeypatch, capsys):
    (block,) = blocks(project_root, "using.md", "bash")
    commands = [line for line in block.splitlines() if line.startswith("adalora ")]
    # A test of its own runs it (tests/test_doctor.py).
    commands.remove("adalora doctor")
    assert len(commands) == 7
    for command in commands:
        words, _, source = command.removeprefix("adalora ").partition(" < ")
        content = (place / source).read_bytes() if source else b""
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert main(shlex.split(words)) == 0, command
        assert capsys.readouterr().out or "--output" in command
    assert len((place / "labels.tsv").read_text().splitlines()) == 4


@pytest.mark.parametrize("method", ["svd", "frd"])
def test_the_shown_numpy_reads_an_artefact(mnli, make, project_root, tmp_path, monkeypatch, method):
    run = mnli / "model" if method == "svd" else make("frd")
    shutil.copytree(run, tmp_path / "output" / "rte" / "model")
    monkeypatch.chdir(tmp_path)
    names = {}
    reading, printing = blocks(project_root, "artefact.md", "python")
    exec(reading, names)
    exec(printing, names)
    artefact = load_artefact(run)
    layers = {n: m for n, m in artefact.model.named_modules() if hasattr(m, "lora_A")}
    targets = names["lora"]["targets"]
    changes = {path: names["update"](path) for path in targets}
    assert {path for path, change in changes.items() if change is not None} == set(layers)
    assert any(change is None for change in changes.values()) == (method == "svd")
    for path, layer in layers.items():
        expected = layer.delta_weight().detach().numpy()
        np.testing.assert_allclose(changes[path], expected, rtol=1e-5, atol=1e-7)
    fingerprint = names["fingerprint"](nano_path() / "model.safetensors")
    assert fingerprint == artefact.description.base_fingerprint


def test_the_fields_told_are_the_fields_written(mnli, project_root):
    text = (project_root / "docs" / "artefact.md").read_text(encoding="utf-8")
    section = text.split("## The description")[1].split("## The fingerprint")[0]
    told = {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert told == set(json.loads((mnli / "model" / "adalora.json").read_text()))


def test_the_stored_tensors_have_the_shapes_told(mnli):
    stored = load_file(mnli / "model" / "adapter.safetensors")
    pattern = load_artefact(mnli).description.rank_pattern
    assert 0 in pattern.values()
    for key, rank in pattern.items():
        module = key.removesuffix(".lora_E")
        if rank == 0:
            assert not any(name.startswith(f"{module}.") for name in stored)
        else:
            assert stored[key].shape == (rank, 1)
            assert stored[f"{module}.lora_A"].shape[0] == rank
            assert stored[f"{module}.lora_B"].shape[1] == rank

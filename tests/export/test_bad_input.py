"""``adalora export`` told wrong: one sentence, status 2, nothing written and nothing lost."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import subprocess
import sys

import pytest
import torch

from adalora.cli import main
from adalora.errors import UserError
from adalora.export import convert as source
from adalora.export import formats
from adalora.export import peft_write as lora
from adalora.export.convert import export_run
from adalora.export.formats import FORMATS, find_format


@pytest.fixture
def run(run_of, tmp_path):
    """A copy of a run, to be damaged."""
    shutil.copytree(run_of("bert"), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("to", list(FORMATS))
def test_every_format_has_what_the_table_promises(to):
    exporter = FORMATS[to].exporter(to)
    for name in ("write", "read", "usage"):
        assert callable(getattr(exporter, name))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("merge", "did you mean 'merged'"),
        ("peft_adalora", "did you mean 'peft-adalora'"),
        ("ONNX", "did you mean 'onnx'"),
        ("gguf", "choose from merged, lora, peft-adalora, onnx, loralib"),
    ],
)
def test_an_unknown_format_gets_the_nearest(name, message, capsys):
    with pytest.raises(UserError, match=message):
        find_format(name)
    assert main(["export", "x", "--to", name, "--output", "y"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("to", "package", "extra"),
    [("lora", "peft", "peft"), ("peft-adalora", "peft", "peft"), ("onnx", "onnxscript", "export")],
)
def test_a_missing_extra_is_named(run, tmp_path, monkeypatch, to, package, extra):
    installed = formats.is_installed
    monkeypatch.setattr(formats, "is_installed", lambda name: name != package and installed(name))
    with pytest.raises(UserError, match=rf"needs {package}.*pip install 'adalora\[{extra}\]'"):
        export_run(run, to=to, output=tmp_path / "out")


def cut(path):
    path.write_bytes(path.read_bytes()[:-4])


def edit(run, **changes):
    path = run / "model" / "adalora.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run), "does not exist; name"),
        (lambda run: shutil.rmtree(run / "model"), "holds no "),
        (lambda run: (run / "model" / "adalora.json").unlink(), "holds no "),
        (lambda run: (run / "model" / "adalora.json").write_text("{"), "cannot be read"),
        (lambda run: edit(run, format_version=99), "format version 99"),
        (lambda run: edit(run, base_model="./gone"), "'./gone'"),
        (lambda run: (run / "model" / "head.safetensors").unlink(), "is missing"),
        (lambda run: cut(run / "model" / "adapter.safetensors"), "damaged"),
    ],
)
def test_a_damaged_run_is_refused_in_a_sentence(run, tmp_path, damage, message):
    damage(run)
    with pytest.raises(UserError, match=message) as caught:
        export_run(run, to="merged", output=tmp_path / "deep" / "out")
    assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}


def test_a_model_with_nan_in_it_is_refused(run, tmp_path, monkeypatch):
    honest = source.load_artefact

    def poisoned(*arguments, **settings):
        artefact = honest(*arguments, **settings)
        artefact.model.classifier.weight.data[0, 0] = float("nan")
        return artefact

    monkeypatch.setattr(source, "load_artefact", poisoned)
    with pytest.raises(UserError, match=r"classifier\.weight holds NaN or infinity"):
        export_run(run, to="merged", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_export_that_computes_something_else_is_refused_and_leaves_nothing(
    run, tree, tmp_path, monkeypatch
):
    """The scale is wrong by a thousandth: the check on random input finds it."""
    honest = lora.low_rank_updates

    def wrong(artefact):
        return {
            path: type(update)(update.down * 1.001, update.up, update.values, update.scale)
            for path, update in honest(artefact).items()
        }

    monkeypatch.setattr(lora, "low_rank_updates", wrong)
    before = tree(run)
    with pytest.raises(UserError, match="The lora export does not compute what the run computes"):
        export_run(run, to="lora", output=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert tree(run) == before


def test_what_float32_costs_the_run_itself_is_allowed_and_no_more(run, monkeypatch, tmp_path):
    strict = dataclasses.replace(FORMATS["merged"], tolerance=0.0)
    monkeypatch.setitem(FORMATS, "merged", strict)
    done = export_run(run, to="merged", output=tmp_path / "out")
    assert 0 < done.agreement.difference <= done.agreement.allowed < 1e-5


def test_an_existing_target_is_replaced_only_with_overwrite_and_only_by_a_complete_one(
    run, tree, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    export_run(run, to="merged", output=out)
    before = tree(out)
    with pytest.raises(UserError, match="name another place; --overwrite replaces it"):
        export_run(run, to="lora", output=out)
    honest = lora.LoraFolder.read
    monkeypatch.setattr(lora.LoraFolder, "read", lambda *_: lambda batch: torch.zeros(1))
    with pytest.raises(UserError, match="Nothing was written"):
        export_run(run, to="lora", output=out, overwrite=True)
    assert tree(out) == before
    monkeypatch.setattr(lora.LoraFolder, "read", honest)
    export_run(run, to="lora", output=out, overwrite=True)
    assert "config.json" not in tree(out)
    assert "adapter_config.json" in tree(out)


@pytest.mark.parametrize("to", ["merged", "loralib"])
def test_overwrite_replaces_no_folder_of_other_things(run, tree, tmp_path, to):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for target in (mine, run, run / "model", tmp_path):
        with pytest.raises(UserError, match="even with --overwrite"):
            export_run(run, to=to, output=target, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert (run / "model" / "adalora.json").is_file()


def test_the_base_model_is_never_replaced(run, base_of, tmp_path):
    shutil.copytree(base_of("bert"), tmp_path / "base")
    with pytest.raises(UserError, match="which this reads from"):
        export_run(
            run,
            to="merged",
            output=tmp_path / "base",
            overwrite=True,
            base_model=str(tmp_path / "base"),
        )


@pytest.mark.parametrize("place", ["/proc/out", "file/out"])
def test_an_impossible_target_is_named(run, tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        export_run(run, to="merged", output=tmp_path / place)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["merged", "lora", "loralib", "onnx"])
def test_a_disk_without_room_is_told_in_a_sentence(run, tree, tmp_path, to):
    """Files may grow to 4 KiB only, so that every format fails while it writes."""
    before = tree(run)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match=r"could not be written .*File too large"):
            export_run(run, to=to, output=tmp_path / "deep" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert tree(run) == before


def test_the_base_may_have_moved(run, base_of, tmp_path):
    shutil.copytree(base_of("bert"), tmp_path / "moved")
    edit(run, base_model=str(tmp_path / "gone"))
    done = export_run(run, to="merged", output=tmp_path / "out", base_model=str(tmp_path / "moved"))
    assert done.agreement.difference < 1e-5


def test_the_artefact_itself_can_be_named(run, tmp_path):
    export_run(run / "model", to="merged", output=tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_command_prints_the_measured_difference(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", "loralib", "--output", str(tmp_path / "a.bin")]) == 0
    out = capsys.readouterr().out
    assert "Checked on 5 random batches: its logits differ from the run's by at most" in out
    assert "--lora_r 4 --lora_alpha 8 --lora_path" in out
    assert torch.load(tmp_path / "a.bin", weights_only=True)


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_answers_without_torch(command):
    program = (
        "import sys; from adalora.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "example:" in result.stdout

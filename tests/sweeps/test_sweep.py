"""``adalora sweep`` from its file to its results, with real runs of the built-in model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adalora.commands.sweep import main
from adalora.errors import UserError
from adalora.results.record import RunRecord
from adalora.sweeps.cells import cells_of
from adalora.sweeps.spec import check_cells, read_sweep_file

BASE = """
base:
  model_name_or_path: nano
  max_steps: 3
  max_seq_length: 32
  per_device_train_batch_size: 8
  max_val_samples: 32
  learning_rate: 1e-3
tasks: [mini-rte]
"""
MIXED = (
    BASE
    + """
methods:
  lora: {apply_lora: true, lora_r: 1}
  still:   # nothing is learnt and nothing pruned
    {apply_lora: true, apply_adalora: true, lora_type: svd, lora_r: 2, target_rank: 2,
     init_warmup: 0, final_warmup: 1, mask_interval: 1, learning_rate: 0}
  broken: {apply_lora: true, lora_r: 1, lora_path: absent.bin}
seeds: [1]
"""
)
EXAMPLES = Path("examples") / "text-classification" / "sweeps"


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("lora: {apply_lora: true, lora_r: many}", "lora_r/--lora-r: invalid int value: 'many'"),
        ("lora: {apply_lora: true}", "--apply_lora needs --lora_r"),
        ("lora: {apply_lora: perhaps, lora_r: 1}", "--apply_lora"),
    ],
)
def test_flags_are_refused_by_the_programs_own_parser_before_any_run(
    tmp_path: Path, method: str, says: str
) -> None:
    path = written(tmp_path, BASE + f"methods:\n  {method}\n")
    with pytest.raises(UserError) as caught:
        main([path, "--output", str(tmp_path / "out")])
    assert says in str(caught.value)
    assert "mini-rte_lora_seed42 is refused" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_plan_is_shown_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, MIXED + "grid: {lora_alpha: [8, 16]}\n")
    assert main([path, "--dry_run", "--no_estimate"]) == 0
    shown = capsys.readouterr().out
    assert "mine: 6 runs (1 tasks x 3 methods x 2 values of lora_alpha x 1 seeds)" in shown
    assert "broken" in shown
    assert [one.name for one in tmp_path.iterdir()] == ["mine.yaml"]


def test_flags_behind_the_dashes_reach_every_run_and_are_checked(tmp_path: Path) -> None:
    path = Path(written(tmp_path, MIXED))
    _, spec = read_sweep_file(path, ["--max-steps", "7", "--bf16", "--lora_alpha=4"])
    assert {cell.flags["max_steps"] for cell in cells_of(spec)} == {"7"}
    assert {cell.flags["bf16"] for cell in cells_of(spec)} == {True}
    assert {cell.flags["lora_alpha"] for cell in cells_of(spec)} == {"4"}
    check_cells(cells_of(spec), source="mine.yaml")
    with pytest.raises(UserError, match="'max_step', which is no flag"):
        read_sweep_file(path, ["--max_step", "7"])
    with pytest.raises(UserError, match="'7' behind -- belongs to no flag"):
        read_sweep_file(path, ["7"])


def test_a_sweep_that_excludes_everything_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, MIXED + "exclude: [{task: mini-rte}]\n")
    with pytest.raises(UserError, match="every run is excluded"):
        main([path, "--dry_run"])


@pytest.mark.parametrize("name", ["small.yaml", "minilm.yaml"])
def test_the_examples_are_sound(name: str, project_root: Path) -> None:
    path = project_root / EXAMPLES / name
    _, spec = read_sweep_file(path, ["--model_name_or_path", "nano"])
    check_cells(cells_of(spec), source=name)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml cannot be read"):
        main([str(tmp_path / "absent.yaml")])


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_are_noted_whatever_becomes_of_each_and_are_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = written(tmp_path, MIXED), tmp_path / "out"
    command = [path, "--output", str(folder), "--jobs", "2"]
    assert main(command) == 1
    found = {line["cell"]["method"]: line for line in lines(folder)}
    assert {name: line["status"] for name, line in found.items()} == {
        "lora": "finished",
        "still": "finished",
        "broken": "failed",
    }
    assert "absent.bin" in found["broken"]["error"]
    assert "Traceback" not in found["broken"]["error"]

    record = RunRecord.from_json(found["lora"]["record"])
    run = folder / found["lora"]["folder"]
    assert record == RunRecord.read(run)
    assert (record.method, record.task, record.seed, record.steps) == ("LoRA", "mini-rte", 1, 3)
    assert record.scores["validation"]["samples"] == 32
    assert record.flags["lora_r"] == 1
    assert record.command[-2:] == ["--root_output_dir", str(run)]
    assert (run / "model" / "adapter.safetensors").is_file()
    assert "loss" in (run / "output.txt").read_text(encoding="utf-8")

    kinds = {warning["kind"] for warning in found["still"]["record"]["warnings"]}
    assert {"delta_zero", "ranks_unchanged"} <= kinds
    shown = capsys.readouterr().out
    assert "2 of 3 runs have finished, 1 failed" in shown
    assert "delta_zero" in shown

    before = (run / "run.json").stat().st_mtime_ns
    assert main(command) == 1
    assert len(lines(folder)) == 3
    assert (run / "run.json").stat().st_mtime_ns == before
    assert "3 of them made earlier" in capsys.readouterr().out


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    text = BASE + "methods: {lora: {apply_lora: true, lora_r: 1}}\nseeds: [1, 2]\n"
    text = text.replace("max_steps: 3", "max_steps: 12\n  save_strategy: steps\n  save_steps: 3")
    path, folder = written(tmp_path, text), tmp_path / "out"
    command = [path, "--output", str(folder), "--jobs", "1", "--keep", "all"]
    sweep = subprocess.Popen([sys.executable, "-m", "adalora", "sweep", *command])
    first, second = (folder / "runs" / f"mini-rte_lora_seed{seed}" for seed in (1, 2))
    deadline = time.monotonic() + 240
    # At work on the second run, which has something to go on from.
    while not list((second / "model").glob("checkpoint-*")):
        assert sweep.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep.send_signal(signal.SIGKILL)
    sweep.wait()
    made = (first / "run.json").stat().st_mtime_ns
    # And a line that the kill tore apart.
    with (folder / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "mini-rte_lora_se')

    assert main(command) == 0
    assert [(line["id"], line["status"]) for line in lines(folder)] == [
        ("mini-rte_lora_seed1", "finished"),
        ("mini-rte_lora_seed2", "finished"),
    ]
    assert (first / "run.json").stat().st_mtime_ns == made
    record = RunRecord.read(second)
    assert record.steps == 12
    assert "Resuming training from checkpoint" in (second / "log.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_estimate_is_measured_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = BASE.replace("max_steps: 3", "max_steps: 5000")
    path = written(tmp_path, text + "methods: {full: {}}\nseeds: [1, 2]\n")
    assert main([path, "--dry_run", "--jobs", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "full 2 5000" in shown
    # Two runs of five thousand steps take minutes even here, and were not made.
    assert "min" in shown.partition("About ")[2]
    assert "with 1 at a time" in shown
    assert [one.name for one in tmp_path.iterdir()] == ["mine.yaml"]

"""run_glue.py in processes of its own: launchers, scripts, commands that people have typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.program import PROGRAM, PROJECT_ROOT, SMALL, run_program

from adalora.builtin.miniature import write_tsv


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.slow
def test_two_processes_end_as_one_with_the_same_global_batch(
    start_program: Any, tmp_path: Path, project_root: Path
) -> None:
    model = tmp_path / "nano"
    shutil.copytree(project_root / "src" / "adalora" / "builtin" / "nano", model)
    config = read(model / "config.json")
    # Dropout draws from each process's own generator: without it the runs are comparable.
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    roots = {}
    for processes in (1, 2):
        root = roots[processes] = tmp_path / f"of-{processes}"
        run = run_program if processes == 1 else partial(start_program, processes=processes)
        run(
            *SMALL,
            *("--model_name_or_path", str(model), "--task_name", "mini-rte", "--do_train"),
            *("--do_eval", "--cls_dropout", "0", "--root_output_dir", str(root)),
            *("--per_device_train_batch_size", str(8 // processes), "--max_train_samples", "96"),
            *("--logging_steps", "5"),
        )
    one, two = roots[1], roots[2]
    assert read(one / "rank_pattern.json") == read(two / "rank_pattern.json")
    histories = [read(root / "model" / "trainer_state.json")["log_history"] for root in (one, two)]
    losses, penalties = (
        [[entry[key] for entry in history if key in entry] for history in histories]
        for key in ("loss", "orth_penalty")
    )
    assert len(losses[0]) == 3
    totals = [read(root / "train_results.json")["train_loss"] for root in (one, two)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-4)
    # float32 sums in another order, through twelve steps of AdamW.
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-4)
    for file in ("adapter.safetensors", "head.safetensors"):
        mine, theirs = (load_file(root / "model" / file) for root in (one, two))
        for key, value in mine.items():
            error = (value - theirs[key]).norm() / value.norm().clamp(min=1e-3)
            assert error < 1e-2, key
    results = [read(root / "eval_results_mini-rte.json") for root in (one, two)]
    assert results[0]["eval_samples"] == results[1]["eval_samples"] == 64
    assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], rel=1e-3)


def mnli_command(project_root: Path) -> list[str]:
    """The command as the README shows it."""
    readme = (project_root / "README.md").read_text(encoding="utf-8")
    (block,) = [
        block.split("```")[0]
        for block in readme.split("```bash\n")[1:]
        if "--task_name mnli" in block.split("```")[0]
    ]
    return block.replace("\\\n", " ").split()


@pytest.mark.slow
def test_the_readmes_mnli_command_runs_verbatim_but_for_its_size(
    project_root: Path, run_command: Any, tmp_path: Path
) -> None:
    write_tsv(tmp_path / "glue", ["mnli"])
    (tmp_path / "examples").symlink_to(project_root / "examples")
    run_command(
        [
            *mnli_command(project_root),
            *("--model_name_or_path", "nano", "--data_dir", str(tmp_path / "glue")),
            *("--max_steps", "4", "--init_warmup", "1", "--final_warmup", "1"),
            *("--mask_interval", "1", "--max_val_samples", "32"),
        ],
        cwd=tmp_path,
    )
    pattern = read(tmp_path / "output" / "glue" / "mnli" / "rank_pattern.json")
    assert (len(pattern), sum(pattern.values())) == (36, 36)


def words_of_script(task: str, folder: Path) -> list[str]:
    """The flags that a task's script gives the program."""
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(PROJECT_ROOT / "scripts" / f"run_debertav3_{task}.sh")],
        env={**os.environ, "PATH": path, "VIRTUAL_ENV": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    return words[words.index(str(PROGRAM)) + 1 :]


FEW = (
    *("--model_name_or_path", "nano", "--max_steps", "3", "--init_warmup", "1"),
    *("--final_warmup", "1", "--mask_interval", "1", "--max_val_samples", "32"),
)


def assert_trained(root: Path, task: str) -> None:
    pattern = read(root / "rank_pattern.json")
    assert len(pattern) == 36
    assert (root / f"eval_results_{task}.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb"])
def test_the_flags_of_a_task_script_train_and_evaluate(task: str, tmp_path: Path) -> None:
    write_tsv(tmp_path / "glue", [task])
    root = tmp_path / "run"
    run_program(
        *(*words_of_script(task, tmp_path), *FEW, "--data_dir", tmp_path / "glue"),
        *("--max_train_samples", 200, "--root_output_dir", root),
        cwd=tmp_path,
    )
    assert_trained(root, task)


@pytest.mark.slow
def test_a_task_script_starts_its_launcher_which_trains_and_evaluates(
    run_command: Any, tmp_path: Path
) -> None:
    write_tsv(tmp_path / "glue", ["rte"])
    script = PROJECT_ROOT / "scripts" / "run_debertav3_rte.sh"
    run_command(
        [
            *("bash", script, *FEW, "--data_dir", "glue", "--max_train_samples", "200"),
            *("--root_output_dir", "run"),
        ],
        cwd=tmp_path,
    )
    assert_trained(tmp_path / "run", "rte")

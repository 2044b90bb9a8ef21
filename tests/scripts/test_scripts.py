"""The shell scripts: they parse, they hold the original's values, they pass flags on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ALL_SIX = "query,key,value,intermediate,layer.output,attention.output"

# What NLU/scripts/run_debertav3_<task>.sh of QingruZhang/AdaLoRA at f6968aa passes, beyond what the
# eight have in common.
FIELDS = [
    "target_rank",
    "lora_r",
    "lora_alpha",
    "reg_orth_coef",
    "init_warmup",
    "final_warmup",
    "mask_interval",
    "max_seq_length",
    "learning_rate",
    "num_train_epochs",
    "cls_dropout",
    "weight_decay",
    "eval_steps",
    "save_steps",
    "logging_steps",
]
ORIGINAL = {
    "mnli": "1 3 16 0.1 8000 50000 100 256 5e-4 7 0.15 0 3000 30000 500",
    "sst2": "1 2 16 0.1 6000 22000 100 128 8e-4 24 0. 0.01 3000 10000 500",
    "cola": "1 3 32 0.1 800 3500 10 64 8e-4 25 0.10 0.00 100 10000 10",
    "qqp": "1 2 16 0.1 8000 25000 100 320 8e-4 5 0.15 0.01 3000 10000 500",
    "qnli": "1 2 32 0.1 2000 8000 100 512 5e-4 5 0.1 0.01 1000 16000 300",
    "rte": "1 2 32 0.3 600 1800 1 320 1.2e-3 50 0.20 0.01 100 10000 10",
    "mrpc": "1 2 32 0.1 600 1800 1 320 1e-3 30 0.0 0.01 300 3000 100",
    "stsb": "1 2 32 0.3 800 2000 10 128 2.2e-3 25 0.2 0.1 100 10000 50",
}
WARMUP = {
    "mnli": ("warmup_steps", "1000"),
    "sst2": ("warmup_steps", "1000"),
    "cola": ("warmup_steps", "100"),
    "qqp": ("warmup_steps", "2000"),
    "qnli": ("warmup_steps", "500"),
    "rte": ("warmup_steps", "200"),
    "mrpc": ("warmup_ratio", "0.1"),
    "stsb": ("warmup_steps", "100"),
}
TENSORBOARD_INTERVAL = {"sst2": "500", "cola": "100", "qqp": "500", "qnli": "300", "stsb": "50"}
IN_GLUE_FOLDER = {"mnli", "cola", "rte"}


def expected_flags(task: str) -> dict[str, str]:
    folder = "glue" if task in IN_GLUE_FOLDER else "debertav3-base"
    flags = dict(zip(FIELDS, ORIGINAL[task].split(), strict=True))
    flags |= dict([WARMUP[task]])
    if task in TENSORBOARD_INTERVAL:
        flags["tb_writter_loginterval"] = TENSORBOARD_INTERVAL[task]
    if task != "mnli":
        flags["report_to"] = "tensorboard"
    return flags | {
        "model_name_or_path": "microsoft/deberta-v3-base",
        "task_name": task,
        "apply_lora": "",
        "apply_adalora": "",
        "lora_type": "svd",
        "lora_module": ALL_SIX,
        "beta1": "0.85",
        "beta2": "0.85",
        "do_train": "",
        "do_eval": "",
        "per_device_train_batch_size": "32",
        "evaluation_strategy": "steps",
        "save_strategy": "steps",
        "seed": "6",
        "root_output_dir": f"./output/{folder}/{task}",
        "overwrite_output_dir": "",
    }


def fake_python(folder: Path) -> Path:
    """Make a ``python`` that prints the current folder and its arguments, one a line."""
    folder.mkdir(parents=True)
    file = folder / "python"
    file.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    file.chmod(0o755)
    return file


def run(script: Path, *arguments: str, cwd: Path, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    done = subprocess.run(
        ["bash", str(script), *arguments],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, "-x", "-P", "SCRIPTDIR", str(script)], check=True)


@pytest.mark.parametrize("task", sorted(ORIGINAL))
def test_a_task_script_passes_the_originals_values_and_the_users_flags(
    task: str, tmp_path: Path
) -> None:
    binaries = fake_python(tmp_path / "bin").parent
    script = SCRIPTS / f"run_debertav3_{task}.sh"
    search = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    extra = ("--data_dir", "my data", "--max_steps", "20")
    cwd, *words = run(script, *extra, cwd=tmp_path, PATH=search, VIRTUAL_ENV=str(tmp_path))
    assert Path(cwd) == tmp_path.resolve()
    launcher = ["-m", "torch.distributed.launch", "--master_port=8679", "--nproc_per_node=1"]
    assert words[:4] == launcher
    assert words[4] == str(SCRIPTS.parent / "examples" / "text-classification" / "run_glue.py")
    assert tuple(words[-4:]) == extra
    flags: dict[str, str] = {}
    name = ""
    for word in words[5:-4]:
        if word.startswith("--"):
            name = word[2:]
            assert name not in flags
            flags[name] = ""
        else:
            flags[name] = word
    assert flags == expected_flags(task)


def test_a_task_script_prefers_the_projects_environment_when_none_is_active(tmp_path: Path) -> None:
    project = tmp_path / "a project"
    shutil.copytree(SCRIPTS, project / "scripts")
    fake_python(project / ".venv" / "bin")
    lines = run(project / "scripts" / "run_debertav3_rte.sh", cwd=tmp_path)
    assert lines[1:3] == ["-m", "torch.distributed.launch"]
    assert lines[5] == str(project / "examples" / "text-classification" / "run_glue.py")


def test_setting_up_says_in_one_sentence_that_python_is_too_old(tmp_path: Path) -> None:
    project = tmp_path / "a project"
    shutil.copytree(SCRIPTS, project / "scripts")
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for tool in ("bash", "dirname"):
        (binaries / tool).symlink_to(shutil.which(tool) or tool)
    clean = {"PATH": str(binaries), "HOME": str(tmp_path)}
    done = subprocess.run(
        [str(binaries / "bash"), str(project / "scripts" / "quickstart.sh")],
        env=clean,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no Python 3.11 or later was found" in done.stderr
    assert not (project / ".venv").exists()

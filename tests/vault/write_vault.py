#!/usr/bin/env python
"""Write what a release leaves behind, so that every later one can be held to reading it.

    python tests/vault/write_vault.py tests/vault/0.2

trains on the built-in model and the built-in tasks with the code of this checkout (about three
minutes on one core) and writes a new folder: a finished run, a checkpoint in the middle of pruning
with the end that it must reach, a finished sweep, and for each what was computed from it. An
existing folder is never written to: what a release left does not change. tests/vault/README.md says
what the files are, and test_vault.py reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path("examples") / "text-classification" / "run_glue.py"
#: Bytes of one release, all files together.
LIMIT = 900_000

COMMON = (
    "--model_name_or_path nano --max_seq_length 32 --report_to none --disable_tqdm True --no_cuda"
)
ARTEFACT = (
    f"{COMMON} --task_name mini-sst2 --apply_adalora --lora_type svd --lora_r 2 --target_rank 1 "
    "--lora_module value,layer.output --lora_init lora --init_warmup 60 --final_warmup 30 "
    "--mask_interval 30 --max_steps 320 --per_device_train_batch_size 16 --learning_rate 2e-3 "
    "--max_val_samples 100 --do_train --do_eval --save_strategy no --logging_steps 20 --seed 3"
).split()
#: Budget 12 for 4 steps, pruned to 6 in the 14 that follow; the checkpoint lies at the eighth step.
CHECKPOINT = (
    f"{COMMON} --task_name mini-sst2 --apply_adalora --lora_type svd --lora_r 2 --target_rank 1 "
    "--lora_module value --init_warmup 4 --final_warmup 6 --mask_interval 1 --max_steps 24 "
    "--max_train_samples 96 --per_device_train_batch_size 8 --learning_rate 2e-3 --do_train "
    "--save_strategy steps --save_steps 8 --logging_steps 1 --seed 5"
).split()
STEP, LAST_STEP = 8, 24
SWEEP = """\
name: vault
base:
  model_name_or_path: nano
  max_seq_length: 32
  max_steps: 24
  max_train_samples: 192
  max_val_samples: 40
  per_device_train_batch_size: 8
  learning_rate: 2e-3
  logging_steps: 12
  no_cuda: true
tasks: [mini-sst2, mini-stsb]
methods:
  lora: {apply_lora: true, lora_r: 2, lora_module: value}
  adalora:
    apply_adalora: true
    lora_type: svd
    lora_r: 2
    target_rank: 1
    lora_module: value
    init_warmup: 6
    final_warmup: 6
    mask_interval: 6
seeds: [1, 2, 3]
"""
SENTENCES = (
    "a rich movie with powerful humor",
    "the plot is not lovely at all",
    "i found the pacing ridiculous , ugly and weak",
    "despite smart humor , the pacing is tedious",
    "The script is wonderful, and so is the music!",
    "Quixotic zeugmas befuddle xylophonists",
    "",
    "a long sentence whose end lies beyond the length that the model was told to read , so that it "
    "is cut off in the middle of words which say nothing of what was painful or lovely about the "
    "comedy , the script , the humor or the plot",
)


def run(folder: Path, *words: object) -> str:
    """Run a Python program in ``folder`` with this checkout's code and one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "loralib")])
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{words} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def write_json(path: Path, values: Any) -> None:
    """Write ``path``, in which every number can be read back as it was."""
    text = json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What ``path`` holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def copy(source: Path, target: Path, names: Sequence[str]) -> None:
    """Copy files, named from ``source``, that must be there."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


# ---- the three parts ----


def write_artefact(work: Path, vault: Path) -> None:
    """A finished AdaLoRA run of which some matrix has rank 0, and its logits for ``SENTENCES``."""
    run(work, ROOT / PROGRAM, *ARTEFACT, "--root_output_dir", "run")
    run_folder = work / "run"
    ranks = read_json(run_folder / "rank_pattern.json")
    if 0 not in ranks.values() or max(ranks.values()) < 2:
        sys.exit(f"The artefact's ranks say too little; change its seed: {ranks}")
    described = read_json(run_folder / "model" / "adalora.json")
    model = ["adalora.json", "README.md", *described["files"]]
    target = vault / "artefact" / "run"
    copy(run_folder, target, ["run.json", "history.json", "rank_pattern.json"])
    copy(run_folder / "model", target / "model", model)
    reader = (
        "import json, sys, adalora, torch\n"
        "classifier = adalora.load(sys.argv[1])\n"
        "words = classifier.tokenizer(json.loads(sys.argv[2]), padding=True, truncation=True, "
        "max_length=classifier.description.max_seq_length, return_tensors='pt')\n"
        "with torch.no_grad(): print(json.dumps(classifier.model(**words).logits.tolist()))\n"
    )
    logits = json.loads(run(work, "-c", reader, target, json.dumps(SENTENCES)).splitlines()[-1])
    expected = {
        "texts": SENTENCES,
        "labels": described["labels"],
        "logits": logits,
        "rank_pattern": ranks,
        "scores": read_json(run_folder / "run.json")["scores"],
    }
    write_json(vault / "artefact" / "expected.json", expected)


def write_checkpoint(work: Path, vault: Path) -> None:
    """A checkpoint inside the pruning phase, and the end of the run that was not interrupted."""
    run(work, ROOT / PROGRAM, *CHECKPOINT, "--root_output_dir", "whole")
    model, target = work / "whole" / "model", vault / "checkpoint"
    shutil.copytree(model / f"checkpoint-{STEP}", target / f"checkpoint-{STEP}")
    end = ["trainable.safetensors", "allocator.safetensors"]
    copy(model / f"checkpoint-{LAST_STEP}", target / "end", end)
    history = read_json(work / "whole" / "history.json")["log_history"]
    log = [one for one in history if "loss" in one]
    budgets = {one["step"]: one["budget"] for one in log}
    if not budgets[1] > budgets[STEP] > budgets[LAST_STEP]:
        sys.exit(f"The checkpoint does not lie inside the pruning phase: {budgets}")
    expected = {
        "flags": CHECKPOINT,
        "step": STEP,
        "last_step": LAST_STEP,
        "rank_pattern": read_json(work / "whole" / "rank_pattern.json"),
        "train_loss": next(one["train_loss"] for one in history if "train_loss" in one),
        "log": log,
    }
    write_json(target / "expected.json", expected)


def write_sweep(work: Path, vault: Path) -> None:
    """A finished sweep, and the mean and deviation of its scores from the predictions alone."""
    (work / "vault.yaml").write_text(SWEEP, encoding="utf-8")
    flags = ["--output", "ledger", "--keep", "none", "--jobs", "1", "--threads", "1"]
    run(work, "-m", "adalora", "sweep", "vault.yaml", *flags)
    ledger, target = work / "ledger", vault / "sweep" / "ledger"
    lines = (ledger / "results.jsonl").read_text(encoding="utf-8").splitlines()
    results = [json.loads(line) for line in lines]
    copy(ledger, target, ["results.jsonl", "plan.json", "sweep.yaml"])
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for one in results:
        cell = one["cell"]
        folder = ledger / one["folder"]
        predictions = next(folder.glob("eval_predictions_*.tsv"))
        copy(folder, target / one["folder"], ["run.json", "history.json", predictions.name])
        value = score_of(predictions, regression=cell["task"] == "mini-stsb")
        scores.setdefault((cell["method"], cell["task"]), {})[cell["seed"]] = value
    means = [
        {
            "method": method,
            "task": task,
            "scores": {str(seed): of_seed[seed] for seed in sorted(of_seed)},
            "mean": float(np.mean(list(of_seed.values()))),
            "deviation": float(np.std(list(of_seed.values()), ddof=1)),
        }
        for (method, task), of_seed in scores.items()
    ]
    write_json(vault / "sweep" / "expected.json", {"runs": len(results), "means": means})


def score_of(predictions: Path, *, regression: bool) -> float:
    """Percent: accuracy, or the mean of Pearson's and Spearman's correlation; NumPy alone."""
    lines = predictions.read_text(encoding="utf-8").splitlines()[1:]
    true, guessed = zip(*(line.split("\t")[1:] for line in lines), strict=True)
    if not regression:
        return 100 * float(np.mean(np.array(true) == np.array(guessed)))
    x, y = np.array(true, dtype=np.float64), np.array(guessed, dtype=np.float64)
    of_values, of_ranks = np.corrcoef(x, y)[0, 1], np.corrcoef(ranks_of(x), ranks_of(y))[0, 1]
    return 100 * float(of_values + of_ranks) / 2


def ranks_of(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rank of each value, ties sharing the mean of theirs."""
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return below + (equal + 1) / 2


# ---- the whole ----


def write_origin(vault: Path) -> None:
    """``origin.json``: the code, the libraries, the kind of machine, and the commands."""
    record = read_json(vault / "artefact" / "run" / "run.json")
    origin = {
        "release": vault.name,
        "revision": record["revision"],
        "versions": record["versions"],
        "machine": {**record["hardware"], "system": platform.system()},
        "environment": "OMP_NUM_THREADS=1",
        "commands": {
            "artefact": ["python", str(PROGRAM), *ARTEFACT, "--root_output_dir", "run"],
            "checkpoint": ["python", str(PROGRAM), *CHECKPOINT, "--root_output_dir", "whole"],
            "sweep": "adalora sweep vault.yaml --output ledger --keep none --jobs 1 --threads 1",
        },
    }
    write_json(vault / "origin.json", origin)


def check_files(vault: Path, *places: Path) -> int:
    """No file names this machine or a place on it, and all are small; returns their bytes."""
    secrets = {str(place).encode() for place in (*places, ROOT, Path.home(), Path(sys.prefix))}
    host = socket.gethostname()
    secrets |= {host.encode()} if len(host) > 5 else set()
    total = 0
    for path in sorted(path for path in vault.rglob("*") if path.is_file()):
        content = path.read_bytes()
        total += len(content)
        for secret in secrets - {b"/"}:
            if secret in content:
                sys.exit(f"{path.relative_to(vault)} names {secret.decode()}.")
    if total > LIMIT:
        sys.exit(f"The files have {total:,} bytes, and {LIMIT:,} are allowed a release.")
    return total


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a new folder, such as tests/vault/0.2")
    folder = parser.parse_args().folder.resolve()
    if folder.exists():
        sys.exit(f"{folder} exists, and what a release left is not written again.")
    with tempfile.TemporaryDirectory(prefix="vault-") as name:
        work = Path(name).resolve()
        vault = work / folder.name
        for part in (write_artefact, write_checkpoint, write_sweep):
            place = work / part.__name__
            place.mkdir()
            part(place, vault)
        write_origin(vault)
        total = check_files(vault, work)
        for path in vault.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        shutil.copytree(vault, folder)
    print(f"Wrote {folder} ({total:,} bytes).")


if __name__ == "__main__":
    main()

"""Records as a run and a sweep leave them, to make reports of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

KINDS = (
    *("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
MODULES = [f"deberta.encoder.layer.{layer}.{kind}" for layer in range(4) for kind in KINDS]
CLASSES = ("negative", "positive")
RANKS = {name: (3 * index) % 5 for index, name in enumerate(MODULES)}
SplitScore = dict[str, Any]


def score(value: float, majority: float = 0.51) -> SplitScore:
    return {
        "main": "accuracy",
        "last": {"accuracy": value},
        "best": {"accuracy": value + 0.01},
        "best_epoch": 2.0,
        "majority": majority,
        "samples": 400,
    }


def record(**changes: Any) -> dict[str, Any]:
    """What run.json of an AdaLoRA run holds."""
    return {
        "format_version": 1,
        "created": "2026-11-25T08:00:00+00:00",
        "method": "AdaLoRA",
        "task": "mini-sst2",
        "base_model": "nano",
        "seed": 6,
        "command": ["--model_name_or_path", "nano", "--task_name", "mini-sst2", "--seed", "6"],
        "flags": {"apply_adalora": True, "lora_r": 4},
        "steps": 200,
        "epochs": 3.0,
        "seconds": 83.25,
        "tokens_per_second": 2690.4,
        "peak_memory_bytes": 640 * 2**20,
        "scores": {"validation": score(0.91)},
        "train_loss": 0.41,
        "eval_loss": 0.43,
        "parameters": {
            "adapter_initial": 59_280,
            "adapter_kept": 25_592,
            "head": 21_170,
            "trained": 80_450,
            "total": 1_581_554,
        },
        "init_rank": 4,
        "mask_events": 40,
        "rank_pattern": {f"{name}.lora_E": rank for name, rank in RANKS.items()},
        "hardware": {
            "machine": "x86_64",
            "processor": "a processor",
            "cores": 2,
            "threads": 1,
            "device": "cpu",
            "precision": "float32",
            "processes": 1,
        },
        "versions": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "adalora": "0.1.0",
            "loralib": "1.0.0",
        },
        "revision": "e4f9fa9+changes",
        "warnings": [],
        **changes,
    }


def without_ranks(**changes: Any) -> dict[str, Any]:
    """What run.json of full fine-tuning holds."""
    nothing = {"method": "full fine-tuning", "init_rank": 0, "mask_events": 0, "rank_pattern": {}}
    return record(**{**nothing, **changes})


def history() -> dict[str, Any]:
    """What history.json of an AdaLoRA run holds."""
    logs: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": step / 66,
            "loss": 0.7 * math.exp(-step / 150) + 0.02 * math.sin(step),
            "orth_penalty": math.exp(-step / 40),
            "learning_rate": 1e-3,
        }
        for step in range(2, 201, 2)
    ]
    for step in (66, 132, 200):
        logs.append(
            {
                "step": step,
                "epoch": step / 66,
                "eval_loss": 0.5,
                "eval_accuracy": 0.6 + step / 700,
                "eval_runtime": 1.0,
                "eval_samples_per_second": 400.0,
            }
        )
    allocations = []
    for step in range(20, 200, 5):
        share = max(0.0, 1 - step / 140)
        ranks = {name: round(rank + (4 - rank) * share) for name, rank in RANKS.items()}
        budget = sum(ranks.values())
        allocations.append(
            {"step": step, "budget": budget, "threshold": 1e-10 * (1 + step), "ranks": ranks}
        )
    importance = {
        name: [10.0 ** -(6 + index % 5 + rank) for rank in range(4)]
        for index, name in enumerate(MODULES)
    }
    return {"log_history": logs, "allocations": allocations, "importance": importance}


def write_run(
    folder: Path,
    run: dict[str, Any],
    course: dict[str, Any] | None = None,
    classes: tuple[str, str] | None = None,
) -> Path:
    """A run's folder with its record, its course if there is one, and answers of two classes."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    if course is not None:
        (folder / "history.json").write_text(json.dumps(course), encoding="utf-8")
    if classes is not None:
        lines = ["index\tlabel\tprediction"]
        lines += [f"{n}\t{classes[n % 2]}\t{classes[n % 3 % 2]}" for n in range(40)]
        path = folder / f"eval_predictions_{run['task']}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_sweep(root: Path, lines: list[dict[str, Any]], plan: str = "tasks: [mini-sst2]") -> Path:
    root.mkdir(parents=True)
    (root / "sweep.yaml").write_text(plan, encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (root / "results.jsonl").write_text(text, encoding="utf-8")
    return root


def line(name: str, run: dict[str, Any], method: str, **cell: Any) -> dict[str, Any]:
    """A line of results.jsonl."""
    cell = {"task": run["task"], "method": method, "budget": None, "seed": run["seed"], **cell}
    return {
        "id": name,
        "status": "finished",
        "cell": cell,
        "error": None,
        "record": run,
        "folder": f"runs/{name}",
    }


def failed_line(name: str, error: str, **cell: Any) -> dict[str, Any]:
    return {
        "id": name,
        "status": "failed",
        "cell": cell,
        "error": error,
        "record": None,
        "folder": f"runs/{name}",
    }


@dataclass(frozen=True)
class Maker:
    """The functions above, for tests."""

    record: Callable[..., dict[str, Any]] = record
    without_ranks: Callable[..., dict[str, Any]] = without_ranks
    history: Callable[[], dict[str, Any]] = history
    score: Callable[..., SplitScore] = score
    write_run: Callable[..., Path] = write_run
    write_sweep: Callable[..., Path] = write_sweep
    line: Callable[..., dict[str, Any]] = line
    failed_line: Callable[..., dict[str, Any]] = failed_line


@pytest.fixture(scope="session")
def make() -> Maker:
    return Maker()


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished AdaLoRA run with all that it leaves."""
    return write_run(tmp_path_factory.mktemp("pages") / "run", record(), history(), CLASSES)


@pytest.fixture(scope="session")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AdaLoRA and full fine-tuning on two tasks with two seeds, a flagged and a failed run."""
    root = tmp_path_factory.mktemp("pages") / "sweep"
    lines = [failed_line("bitfit-1", "the loss of step 3 is not finite", method="BitFit", seed=1)]
    for task in ("mini-sst2", "mini-rte"):
        for seed in (1, 2):
            scores = {"validation": score(0.8 + 0.02 * seed)}
            first = record(task=task, seed=seed, scores=scores, tokens_per_second=1000.0 * seed)
            flagged = [{"kind": "one_class", "message": "Every answer is positive."}]
            second = without_ranks(
                task=task,
                seed=seed,
                scores={"validation": score(0.7)},
                warnings=flagged if (task, seed) == ("mini-rte", 2) else [],
                flags={},
                parameters={
                    **first["parameters"],
                    **dict.fromkeys(("adapter_initial", "adapter_kept"), 10**6),
                    "trained": 1_021_170,
                },
            )
            lines.append(line(f"ada-{task}-{seed}", first, "AdaLoRA"))
            lines.append(line(f"full-{task}-{seed}", second, "full"))
    write_sweep(root, lines)
    write_run(root / "runs" / "ada-mini-rte-1", lines[5]["record"], history(), CLASSES)
    return root

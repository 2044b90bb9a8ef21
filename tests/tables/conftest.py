"""Finished runs made by hand: records and predictions as the runner writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adalora.results.record import RunRecord

LORA = {"apply_lora": True, "lora_r": 2}
ADALORA = {**LORA, "lora_type": "svd", "apply_adalora": True, "lora_r": 4, "target_rank": 2}
METHODS = {"LoRA": LORA, "AdaLoRA": ADALORA, "BitFit": {"apply_bitfit": True}}

WriteRun = Callable[..., Path]


def record(
    method: str = "LoRA",
    task: str | None = "rte",
    seed: int = 1,
    *,
    last: float | Mapping[str, Mapping[str, float]] = 0.5,
    best: float | None = None,
    warnings: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    **others: Any,
) -> RunRecord:
    """A record; ``last`` is the accuracy on "validation", or the metrics of each split."""
    splits = last if isinstance(last, Mapping) else {"validation": {"accuracy": last}}
    scores = {
        split: {
            "main": next(iter(metrics)),
            "last": dict(metrics),
            "best": None if best is None else dict.fromkeys(metrics, best),
            "best_epoch": None if best is None else 2.0,
            "majority": 0.5,
            "samples": 10,
        }
        for split, metrics in splits.items()
    }
    values = {
        "created": f"2026-01-01T00:00:{seed:02d}+00:00",
        "method": method,
        "task": task,
        "base_model": "nano",
        "seed": seed,
        "command": ["--seed", str(seed)],
        "flags": {"task_name": task, "seed": seed, **METHODS.get(method, {}), **(flags or {})},
        "steps": 10,
        "epochs": 2.0,
        "seconds": 3.5,
        "tokens_per_second": 100.0,
        "peak_memory_bytes": 2**20,
        "scores": scores,
        "train_loss": 0.5,
        "eval_loss": 0.6,
        "parameters": {
            "adapter_initial": 400,
            "adapter_kept": 200,
            "head": 600,
            "trained": 1000,
            "total": 10_000,
        },
        "init_rank": 4 if method == "AdaLoRA" else 0,
        "mask_events": 0,
        "rank_pattern": {},
        "hardware": dict.fromkeys(
            ("machine", "processor", "cores", "threads", "device", "precision", "processes"), "x"
        ),
        "versions": dict.fromkeys(("python", "torch", "transformers", "adalora", "loralib"), "1"),
        "revision": None,
        "warnings": [{"kind": kind, "message": "m"} for kind in warnings],
    }
    return RunRecord(**{**values, **others})


def predictions_text(labels: Sequence[object], answers: Sequence[object]) -> str:
    pairs = zip(labels, answers, strict=True)
    lines = [f"{index}\t{label}\t{answer}\n" for index, (label, answer) in enumerate(pairs)]
    return "index\tlabel\tprediction\n" + "".join(lines)


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes the folder of a run: ``write_run("LoRA", seed=2, predictions=(labels, answers))``."""

    def write(
        method: str = "LoRA",
        task: str | None = "rte",
        seed: int = 1,
        *,
        folder: str | None = None,
        predictions: tuple[Sequence[object], Sequence[object]] | None = None,
        **values: Any,
    ) -> Path:
        root = tmp_path / "runs" / (folder or f"{task}-{method}-{seed}")
        root.mkdir(parents=True)
        record(method, task, seed, **values).write(root)
        if predictions is not None:
            path = root / f"eval_predictions_{task or 'custom'}.tsv"
            path.write_text(predictions_text(*predictions))
        return root

    return write


def results_line(
    identity: str, found: RunRecord | None, cell: Mapping[str, Any], error: str | None = None
) -> str:
    """A line of a sweep's ``results.jsonl``."""
    return json.dumps(
        {
            "id": identity,
            "status": "failed" if found is None else "finished",
            "cell": dict(cell),
            "error": error,
            "record": None if found is None else found.to_json(),
            "folder": f"runs/{identity}",
        }
    )


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)

"""Small sweeps: their cells, a record for one, and a module that stands for a quick run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adalora.results.record import RunRecord
from adalora.sweeps.cells import Cell

#: A record as a run would leave it, of which tests change what they are about.
VALUES: dict[str, Any] = json.loads(
    """{
  "created": "2026-01-31T12:00:00+00:00", "method": "LoRA", "task": "cola", "base_model": "nano",
  "seed": 1, "command": [], "flags": {}, "steps": 3, "epochs": 1.0, "seconds": 1.5,
  "tokens_per_second": 10.0, "peak_memory_bytes": 1000, "train_loss": 0.5, "eval_loss": 0.6,
  "scores": {"validation": {"main": "accuracy", "last": {"accuracy": 0.5}, "best": null,
             "best_epoch": null, "majority": 0.4, "samples": 10}},
  "parameters": {"adapter_initial": 4, "adapter_kept": 4, "head": 6, "trained": 10, "total": 100},
  "init_rank": 0, "mask_events": 0, "rank_pattern": {},
  "hardware": {"machine": "x", "processor": "x", "cores": 1, "threads": 1, "device": "cpu",
               "precision": "float32", "processes": 1},
  "versions": {"python": "3", "torch": "2", "transformers": "5", "adalora": "0", "loralib": "1"},
  "revision": null}"""
)


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    def make(score: float = 0.5) -> RunRecord:
        scores = {**VALUES["scores"]["validation"], "last": {"accuracy": score}}
        return RunRecord(**{**VALUES, "scores": {"validation": scores}})

    return make


@pytest.fixture
def make_cell() -> Callable[..., Cell]:
    def make(seed: int = 1, task: str = "cola", **flags: Any) -> Cell:
        axes = {"task": task, "method": "lora", "budget": None, "seed": seed}
        return Cell(f"{task}_lora_seed{seed}", axes, {"seed": seed, **flags})

    return make


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that a process can run in place of a training: it does what its flag --do says."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "quick_run.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "folder = pathlib.Path(flags['--root_output_dir'])\n"
        "(folder / 'began').write_text(os.environ['OMP_NUM_THREADS'])\n"
        "exec(flags['--do'])\n"
        "(folder / 'done').touch()\n",
        encoding="utf-8",
    )
    monkeypatch.setenv(
        "PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return "quick_run"

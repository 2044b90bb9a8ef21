"""A record as a run would leave it, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from adalora.results.record import RunRecord

VALUES: dict[str, Any] = {
    "format_version": 1,
    "created": "2026-01-31T12:00:00+00:00",
    "method": "AdaLoRA",
    "task": "cola",
    "base_model": "nano",
    "seed": 6,
    "command": ["--task_name", "cola"],
    "flags": {"task_name": "cola", "lora_r": 4},
    "steps": 100,
    "epochs": 2.0,
    "seconds": 12.5,
    "tokens_per_second": 1000.0,
    "peak_memory_bytes": 10**8,
    "scores": {
        "validation": {
            "main": "matthews_correlation",
            "last": {"matthews_correlation": 0.4, "accuracy": 0.7},
            "best": {"matthews_correlation": 0.5, "accuracy": 0.72},
            "best_epoch": 1.0,
            "majority": 0.0,
            "samples": 100,
        }
    },
    "train_loss": 0.5,
    "eval_loss": 0.6,
    "parameters": {
        "adapter_initial": 400,
        "adapter_kept": 200,
        "head": 60,
        "trained": 460,
        "total": 10_000,
    },
    "init_rank": 4,
    "mask_events": 9,
    "rank_pattern": {"encoder.layer.0.query.lora_E": 2},
    "hardware": {
        "machine": "x86_64",
        "processor": "some processor",
        "cores": 2,
        "threads": 1,
        "device": "cpu",
        "precision": "float32",
        "processes": 1,
    },
    "versions": {
        "python": "3.12.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "adalora": "0.1.0",
        "loralib": "1.0.0",
    },
    "revision": "abc+changes",
    "warnings": [{"kind": "one_class", "message": "Every answer is the same."}],
}


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def values() -> dict[str, Any]:
    return {**VALUES}


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    return lambda **changes: RunRecord(**{**VALUES, **changes})

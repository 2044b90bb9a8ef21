"""Alternating measurements, medians, and the machine they were taken on."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch

from adalora.runtime.machine import processor_name

__all__ = ["alternate", "machine"]

PACKAGES = ("torch", "transformers", "peft", "accelerate")


def alternate(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, float]:
    """Median seconds of each candidate; one call of each per round, in turn, told as they come."""
    for _ in range(warmup):
        for call in candidates.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(1, rounds + 1):
        for name, call in candidates.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
            told = f"round {number} of {rounds}: {name} {seconds[name][-1]:.3g} s"
            print(told, file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Processor, threads and package versions."""
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }

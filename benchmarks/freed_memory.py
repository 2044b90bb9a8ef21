"""A training step whose freed memory stays with the process, against one that gives it back."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.processes import answer_of

LENGTHS = [128] * 8
STEPS = 6


def measure(*, layers: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds, page faults and peak memory of a step of ours in bfloat16, median of processes."""
    rows: dict[str, list[dict[str, float]]] = {"kept": [], "given back": []}
    result: dict[str, Any] = {"layers": layers}
    for _ in range(rounds):
        for name, found in rows.items():
            found.append(answer_of("benchmarks.freed_memory", name, str(layers)))
            result[name] = {key: statistics.median(row[key] for row in found) for key in found[0]}
            yield result
    result["speedup"] = result["given back"]["seconds"] / result["kept"]["seconds"]
    yield result


def _in_this_process(name: str, layers: int) -> None:
    from adalora.runtime.machine import keep_freed_memory
    from benchmarks.contenders import adalora_step, batch_of, cast_base
    from benchmarks.resident import resident_bytes

    if name == "kept":
        keep_freed_memory(os.environ)
    step = adalora_step(layers)
    step.bf16 = True
    cast_base(step)
    batch = batch_of(LENGTHS)
    for _ in range(2):
        step(batch)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - started)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    answer = {"seconds": statistics.median(seconds), "page faults": faults / STEPS}
    print(json.dumps({**answer, "peak MiB": resident_bytes("VmHWM") / 2**20}))


if __name__ == "__main__":
    _in_this_process(sys.argv[1], int(sys.argv[2]))

"""Memory of each of two processes with the frozen base whole in both, and divided between them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.resident import resident_bytes

PROCESSES, LENGTH, BATCH, STEPS = 2, 64, 4, 4


def measure(*, layers: int) -> Iterator[dict[str, Any]]:
    """MB of the base held, and resident at rest and at most in training; seconds of a step."""
    result: dict[str, Any] = {
        "layers": layers,
        "processes": PROCESSES,
        "length": LENGTH,
        "batch": BATCH,
    }
    for base in ("whole", "divided"):
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={PROCESSES}"]
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "benchmarks.sharding", base, str(layers)],
            capture_output=True,
            text=True,
            check=True,
        )
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        result[base] = json.loads(line)
        yield result


def _in_this_process(base: str, layers: int) -> None:
    import torch
    import torch.distributed as dist

    from adalora.runtime.launch import leave_job
    from adalora.runtime.sharding import base_bytes, replicate_trained, shard_base
    from benchmarks.contenders import adalora_step, batch_of

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    step, cpu = adalora_step(layers), torch.device("cpu")
    if base == "divided":
        shard_base(step.model, cpu)
    step.model = replicate_trained(step.model, cpu)
    rest = resident_bytes("VmRSS") / 1e6
    # Forget the peak of building the model, whole in either case.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    started = time.perf_counter()
    for _ in range(STEPS):
        step(batch_of([LENGTH] * BATCH))
    result = {
        "base held": base_bytes(step.model) / 1e6,
        "at rest": rest,
        "peak in training": resident_bytes("VmHWM") / 1e6,
        "seconds of a step": (time.perf_counter() - started) / STEPS,
    }
    if dist.get_rank() == 0:
        print(json.dumps(result), flush=True)
    leave_job()


if __name__ == "__main__":
    _in_this_process(sys.argv[1], int(sys.argv[2]))

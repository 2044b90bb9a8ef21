"""How our step's cost grows with length, layers, rank and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.contenders import adalora_step, batch_of
from benchmarks.timing import alternate

LENGTHS = (32, 64, 128, 256, 512)
DEPTHS = (2, 4, 8)
RANKS = (2, 8, 32)
PROCESSES = (1, 2)
LAYERS, TOKENS, LENGTH, RANK = 2, 1024, 128, 8


def measure(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds per step, 1,024 tokens each; with processes, one thread and a share of them each."""
    batch = batch_of([LENGTH] * (TOKENS // LENGTH))
    lengths = {n: batch_of([n] * (TOKENS // n)) for n in LENGTHS}
    step = adalora_step(LAYERS)
    by_length = {str(n): partial(step, lengths[n]) for n in LENGTHS}
    by_depth = {str(n): partial(adalora_step(n), batch) for n in DEPTHS}
    by_rank = {str(n): partial(adalora_step(LAYERS, rank=n), batch) for n in RANKS}
    result: dict[str, Any] = {}
    for name, calls in (("length", by_length), ("layers", by_depth), ("rank", by_rank)):
        result[name] = alternate(calls, rounds=rounds)
        yield result
    for count in PROCESSES:
        result.setdefault("processes", {})[str(count)] = _launched(count, rounds)
        yield result


def _launched(processes: int, rounds: int) -> float:
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "benchmarks.growth", str(rounds)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def _in_this_process(rounds: int) -> None:
    dist.init_process_group("gloo")
    step = adalora_step(LAYERS)
    step.model = torch.nn.parallel.DistributedDataParallel(step.model)
    share = TOKENS // LENGTH // dist.get_world_size()
    seconds = alternate({"step": partial(step, batch_of([LENGTH] * share))}, rounds=rounds)
    if dist.get_rank() == 0:
        print(json.dumps(seconds["step"]))
    dist.destroy_process_group()


if __name__ == "__main__":
    _in_this_process(int(sys.argv[1]))

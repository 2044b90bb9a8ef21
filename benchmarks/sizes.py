"""What new sizes cost in half precision, with batches of exact and of recurring sizes."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.contenders import Step, adalora_step, cast_base, in_turn
from benchmarks.timing import alternate

BATCH, SHORTEST, LONGEST = 32, 6, 40


def measure(*, layers: int, batches: int) -> dict[str, Any]:
    """Median seconds of a step on batches that were not met before, and on the same ones again."""
    draw = random.Random(0)
    lengths = [[draw.randint(SHORTEST, LONGEST) for _ in range(BATCH)] for _ in range(batches)]
    steps = {"exact": _sized(layers, recurring=False), "recurring": _sized(layers, recurring=True)}
    calls = {name: in_turn(step, lengths) for name, step in steps.items()}
    result: dict[str, Any] = {"layers": layers, "batches": batches}
    for when in ("new", "again"):
        result[when] = alternate(calls, rounds=batches, warmup=0)
    return result


def _sized(layers: int, *, recurring: bool) -> Step:
    step = adalora_step(layers)
    step.bf16 = True
    cast_base(step)
    encoder: Any = step.model.get_submodule("deberta")
    encoder._makes_kernels_per_size = lambda device: recurring
    return step

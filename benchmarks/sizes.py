"""What new sizes cost in half precision, with batches of exact and of recurring sizes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from adalora.pretrained.deberta import packing
from benchmarks.contenders import Step, adalora_step, cast_base, in_turn
from benchmarks.timing import alternate

BATCH, SHORTEST, LONGEST = 32, 6, 40


def measure(*, layers: int, batches: int) -> Iterator[dict[str, Any]]:
    """Median seconds of a step on batches that were not met before, and on the same ones again."""
    draw = random.Random(0)
    lengths = [[draw.randint(SHORTEST, LONGEST) for _ in range(BATCH)] for _ in range(batches)]
    calls = {
        name: _sized(in_turn(_step(layers), lengths), recurring=name == "recurring")
        for name in ("exact", "recurring")
    }
    result: dict[str, Any] = {"layers": layers, "batches": batches}
    for when in ("new", "again"):
        result[when] = alternate(calls, rounds=batches, warmup=0)
        yield result


def _sized(call: Callable[[], object], *, recurring: bool) -> Callable[[], object]:
    def sized() -> object:
        packing.makes_kernels_per_size = lambda device, dtype: recurring
        return call()

    return sized


def _step(layers: int) -> Step:
    step = adalora_step(layers)
    step.bf16 = True
    cast_base(step)
    return step

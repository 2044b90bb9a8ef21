"""The training step at four lengths with equal tokens, no padding."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.contenders import CONTENDERS, batch_of, cast_base
from benchmarks.floor import linear_floor
from benchmarks.timing import alternate

LENGTHS = (64, 128, 256, 512)


def measure(
    *, layers: int, tokens: int, rounds: int, precisions: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Seconds per step of every contender, and ratios to ours.

    In bfloat16 all compute by autocast; ours also holds the frozen weights in it, as
    ``--base_dtype bfloat16`` does, and the peers keep theirs as their libraries load them.
    """
    result: dict[str, Any] = {"layers": layers, "tokens": tokens}
    for precision in precisions:
        steps = {name: make(layers) for name, make in CONTENDERS.items()}
        for name, step in steps.items():
            step.bf16 = precision == "bfloat16"
            if step.bf16 and name.startswith("ours"):
                cast_base(step)
        rows: dict[Any, dict[str, Any]] = {}
        found = result[precision] = {"lengths": rows}
        for length in LENGTHS:
            batch = batch_of([length] * (tokens // length))
            calls = {name: partial(step, batch) for name, step in steps.items()}
            seconds = alternate(calls, rounds=rounds)
            floor = linear_floor(layers, tokens, length, precision)
            rows[length] = {
                "seconds": seconds,
                "speedup over PEFT AdaLoRA": seconds["PEFT AdaLoRA"] / seconds["ours"],
                "speedup over PEFT LoRA": seconds["PEFT LoRA"] / seconds["ours"],
                "cost over our LoRA": seconds["ours"] / seconds["ours, LoRA"],
                "cost over frozen": seconds["ours"] / seconds["ours, frozen"],
                "fraction of the product floor": floor / seconds["ours"],
            }
            found["geometric mean over PEFT AdaLoRA"] = statistics.geometric_mean(
                row["speedup over PEFT AdaLoRA"] for row in rows.values()
            )
            yield result

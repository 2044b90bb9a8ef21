"""Peak memory of training at length 512, each contender in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.processes import answer_of
from benchmarks.resident import resident_bytes

LENGTH, BATCH = 512, 8


def measure(*, layers: int) -> Iterator[dict[str, Any]]:
    """MiB above what the built model holds, of ours and of PEFT's AdaLoRA."""
    result: dict[str, Any] = {"layers": layers, "length": LENGTH, "batch": BATCH}
    for name in ("ours", "PEFT AdaLoRA"):
        result[name] = answer_of("benchmarks.memory", name, str(layers))
        yield result
    result["ratio"] = result["ours"]["peak"] / result["PEFT AdaLoRA"]["peak"]
    yield result


def _in_this_process(name: str, layers: int) -> None:
    from benchmarks.contenders import CONTENDERS, batch_of

    step = CONTENDERS[name](layers)
    before = resident_bytes("VmHWM") / 2**20
    for _ in range(2):
        step(batch_of([LENGTH] * BATCH))
    peak = resident_bytes("VmHWM") / 2**20
    print(json.dumps({"peak": peak, "above the model": peak - before}))


if __name__ == "__main__":
    _in_this_process(sys.argv[1], int(sys.argv[2]))

"""Penalty and allocator on a masked step: time and dispatched operations as depth grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contenders import CONTENDERS, batch_of
from benchmarks.timing import alternate

DEPTHS = (12, 24, 48)


class _Counter(TorchDispatchMode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.sums = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # What autograd does wherever a parameter is used twice, here once per factor.
        if function is torch.ops.aten.add_.Tensor:
            self.sums += 1
        else:
            self.operations += 1
        return function(*args, **(kwargs or {}))


def measure(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Per depth: operations and seconds of ours and of PEFT's allocator."""
    result: dict[str, Any] = {}
    for depth in DEPTHS:
        row: dict[str, Any] = {"matrices": 6 * depth}
        for name in ("ours", "PEFT AdaLoRA"):
            step = CONTENDERS[name](depth)
            step.model(**batch_of([8])).loss.backward()
            parts: dict[str, Any] = {"allocator": lambda s=step: s.after(s.number)}
            if step.penalty is not None:
                parts["penalty, forward"] = step.penalty
                parts["penalty, forward and backward"] = lambda s=step: s.penalty().backward()
            counts = {}
            for part, call in parts.items():
                call()
                with _Counter() as counter:
                    call()
                counts[part] = counter.operations
                if counter.sums > 1:
                    counts[f"{part}: sums of two gradients"] = counter.sums
            row[name] = {"operations": counts, "seconds": alternate(parts, rounds=rounds)}
            result[str(depth)] = row
            yield result

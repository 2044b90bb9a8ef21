"""What a run would take, from a few of its own steps: a process that stops when it knows.

The run is built as always, with every flag as it is; only its first steps and a few batches of
evaluation are made.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adalora.results.machine import peak_memory
from adalora.storage.files import write_json
from adalora.sweeps.child import watched

__all__ = ["MEASURED_FILE", "Stopwatch", "main"]

MEASURED_FILE = "measured.json"
_WARM_UP_STEPS = 2
_STEPS = 6
_BATCHES = 4


class Measured(BaseException):
    """All is known; no ``Exception``, so that nothing on the way takes it for a failure."""


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Times the first steps and evaluation batches, and raises ``Measured``.

    Args:
        started: when the process began, as ``time.time``.
    """

    def __init__(self, started: float) -> None:
        self._started = started
        self._steps: list[float] = []
        self._batches: list[float] = []
        self._last = 0.0
        self.facts: dict[str, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note how long it took to get here, and how long the run would be."""
        self.facts = {"start_seconds": time.time() - self._started, "steps": state.max_steps}
        self._last = _now()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Time a step; evaluate after the last one that is needed."""
        self._steps.append(self._lap())
        if len(self._steps) == min(_WARM_UP_STEPS + _STEPS, state.max_steps):
            if not args.do_eval:
                self._stop(args, batches=0)
            control.should_evaluate = True
            self._last = _now()

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Time a batch of evaluation."""
        self._batches.append(self._lap())
        if len(self._batches) == min(_BATCHES, len(eval_dataloader)):
            self._stop(args, batches=len(eval_dataloader))

    def _lap(self) -> float:
        before, self._last = self._last, _now()
        return self._last - before

    def _stop(self, args: TrainingArguments, *, batches: int) -> None:
        steps = self._steps[_WARM_UP_STEPS:] or self._steps
        step, total = statistics.mean(steps), self.facts["steps"]
        batch = statistics.mean(self._batches) if self._batches else 0.0
        evaluations = 1 + _evaluations_on_the_way(args, total)
        self.facts |= {
            "step_seconds": step,
            "evaluation_seconds": batch * batches,
            "evaluations": evaluations,
            "peak_memory_bytes": peak_memory(args.device),
            "seconds": self.facts["start_seconds"] + step * total + batch * batches * evaluations,
        }
        raise Measured


def _evaluations_on_the_way(args: TrainingArguments, steps: int) -> int:
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if strategy == "epoch":
        return max(int(args.num_train_epochs), 1)
    # Below 1 it is a fraction of the run.
    every = float(args.eval_steps or 0)
    every *= steps if every < 1 else 1
    return int(steps / every) if strategy == "steps" and every else 0


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(flags: Sequence[str]) -> int:
    """Measure the run that the flags describe; what is found lies in its folder."""
    import psutil  # type: ignore[import-untyped]

    from adalora.training import program

    stopwatch = Stopwatch(psutil.Process(os.getpid()).create_time())

    def measure() -> None:
        try:
            program.run(flags, program="adalora sweep", callbacks=[stopwatch])
        except Measured:
            folder = Path(flags[list(flags).index("--root_output_dir") + 1])
            write_json(folder / MEASURED_FILE, stopwatch.facts)

    return watched(measure)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

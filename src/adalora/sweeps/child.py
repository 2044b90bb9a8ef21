"""The process of one run of a sweep: it trains, or measures a few steps, while the sweep is there.

``python -m adalora.sweeps.child train FLAGS`` makes the run. ``... measure FLAGS`` builds it as
always, with every flag as it is, makes only its first steps and a few batches of evaluation, and
writes what the whole would take to ``measured.json`` in its folder.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adalora.errors import exit_with_message
from adalora.runtime.machine import peak_memory
from adalora.storage.files import write_json
from adalora.sweeps.runner import MEASURED_FILE
from adalora.training import program

_WARM_UP_STEPS = 2
_STEPS = 6
_BATCHES = 4


def measure(flags: Sequence[str]) -> None:
    """Measure the run that the flags describe; what is found lies in its folder."""
    stopwatch = Stopwatch(psutil.Process(os.getpid()).create_time())
    try:
        program.run(flags, program="adalora sweep", callbacks=[stopwatch])
    except Measured:
        folder = Path(flags[list(flags).index("--root_output_dir") + 1])
        write_json(folder / MEASURED_FILE, stopwatch.facts)


class Measured(BaseException):
    """All is known; no ``Exception``, so that nothing on the way takes it for a failure."""


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Times the first steps and evaluation batches, and raises ``Measured``.

    The process began at ``started``, as ``time.time`` counts.
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


def _end_with_the_sweep() -> None:
    """End this process by SIGTERM once its standard input ends.

    The sweep holds the other end of that pipe, which the system closes however the sweep ends.
    """

    def watch() -> None:
        # Not sys.stdin: the interpreter's end would wait for a read through its buffer.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(words: Sequence[str]) -> int:
    """Do what the first word says (``train`` or ``measure``) with the flags behind it."""
    train = partial(program.run, program="adalora train")
    work: dict[str, Callable[[Sequence[str]], None]] = {"train": train, "measure": measure}
    _end_with_the_sweep()
    return exit_with_message(lambda: work[words[0]](words[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

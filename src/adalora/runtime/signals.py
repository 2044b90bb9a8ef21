"""SIGTERM and SIGINT: the step under way is finished, a checkpoint written, and the run ends.

The exit status is the shell's (143, 130) and one sentence says how to go on. A second signal ends
the process at once, whatever it is doing. Several processes stop after the same step, although a
signal reaches each at its own moment, or one of them alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adalora.errors import Interrupted, is_main_process
from adalora.runtime.failures import resume_hint
from adalora.runtime.launch import leave_job

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KEY = "adalora/stop"


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ends a run on a signal; training by an ``Interrupted`` after its checkpoint was written.

    Give it to the Trainer as one of ``callbacks``, and do all of the run inside ``handle_signals``.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._last_step: int | None = None
        self._training = False
        self._handled: list[signal.Signals] = []

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Answer the signals while inside; only the main thread can.

        One that whoever started the program had it ignore (``nohup``, a job in the background)
        stays ignored.
        """
        self._handled = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._answer) for number in self._handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        # From here on the system's own answer to both, which no busy library can hold up.
        for one in self._handled:
            signal.signal(one, signal.SIG_DFL)
        self._asked = number
        name = signal.Signals(number).name
        if not self._training:
            raise Interrupted(
                number,
                f"Stopped by {name} while no training was under way; what was written before is "
                "as it was.",
            )
        if is_main_process():
            # Not print, which may be what was interrupted.
            text = f"{name}: a checkpoint follows after this step; a second signal ends at once.\n"
            os.write(2, text.encode())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on a signal waits for the end of the step."""
        self._training = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the checkpoint that the run ends with."""
        if self._last_step is None:
            self._last_step = self._agree(state.global_step + 1)
            if self._last_step is not None and not _several():
                self._last_step = state.global_step
        if self._last_step is not None and state.global_step >= self._last_step:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the last step there is no other to agree on: the processes wait for one another."""
        if not self._training or state.global_step < state.max_steps:
            return
        if self._agree(state.global_step, wait=True) is not None:
            self._last_step = state.global_step
            control.should_save = True

    # An evaluation at the end of the last epoch comes after that event, and before the saving.
    on_evaluate = on_epoch_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on there is no step to wait for."""
        if self._agree(state.global_step, wait=True) is not None:
            self._end(args, state)
        self._training = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The checkpoint is written: end."""
        if self._last_step is not None and state.global_step >= self._last_step:
            self._end(args, state)

    def _agree(self, step: int, *, wait: bool = False) -> int | None:
        """After which step all processes stop, ``step`` if this one proposes it; None for go on.

        No process is more than one step ahead of another, as every step needs all. So what one
        writes into the common store after this step is read by all after the next. With ``wait``
        all are here.
        """
        if not _several():
            return step if self._asked is not None else None
        store = dist.distributed_c10d._get_default_store()
        if self._asked is not None:
            store.compare_set(_KEY, "", f"{step} {self._asked}")
        if wait:
            dist.barrier()
        if not store.check([_KEY]):
            return None
        last, number = store.get(_KEY).split()
        self._asked = int(number)
        return int(last)

    def _end(self, args: TrainingArguments, state: TrainerState) -> NoReturn:
        leave_job()
        self._training = False
        raise Interrupted(int(self._asked or 0), _how_to_go_on(int(self._asked or 0), args, state))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _how_to_go_on(number: int, args: TrainingArguments, state: TrainerState) -> str:
    checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
    after = f"after step {state.global_step} of {state.max_steps}"
    if checkpoint.is_dir():
        last = f"its checkpoint was written: {resume_hint(args, checkpoint)}"
    else:
        last = "no checkpoint of it was asked for (--save_strategy)"
    return f"Stopped by {signal.Signals(number).name} {after}; {last}."

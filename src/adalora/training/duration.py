"""How long a run has trained, over all the processes that it was interrupted and resumed by."""

from __future__ import annotations

import time
from typing import Any, cast

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from adalora.errors import UserError

__all__ = ["TrainingTime"]


class TrainingTime(TrainerCallback, ExportableState):  # type: ignore[misc]
    """A stopwatch that checkpoints keep.

    Args:
        seconds: of training, evaluation on the way included.
        since_epoch: where it was started, above 0 if the run was resumed from a checkpoint that
            held none.
    """

    def __init__(self, seconds: float = 0.0, since_epoch: float = 0.0) -> None:
        self._before = seconds
        self._started: float | None = None
        self.since_epoch = since_epoch

    @classmethod
    def of(cls, trainer: Trainer) -> TrainingTime:
        """The stopwatch of ``trainer``."""
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, cls):
                return callback
        raise UserError("This Trainer has no TrainingTime; AdaLoraTrainer brings one.")

    @property
    def seconds(self) -> float:
        """Of training until now, or until its end."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._before + running

    def state(self) -> dict[str, Any]:
        """What ``trainer_state.json`` keeps."""
        return {"args": {"seconds": self.seconds, "since_epoch": self.since_epoch}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start, where the checkpoint stopped if there is one."""
        known = cast("dict[str, Any]", state.stateful_callbacks if state.global_step else {})
        kept = known.get(type(self).__name__, {}).get("args", {})
        self._before = float(kept.get("seconds", 0.0))
        self.since_epoch = float(kept.get("since_epoch", state.epoch or 0.0))
        self._started = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop."""
        self._before, self._started = self.seconds, None

"""AdaLoRA inside any Hugging Face Trainer, for those who cannot subclass it.

The Trainer calls ``on_optimizer_step`` after the optimizer's step with the (clipped, accumulated)
gradients still in place and the step's index not yet advanced, which is where the original's
trainer calls the allocator. A callback cannot reach the loss: with a stock Trainer add
``AdaLora.penalty()`` in ``compute_loss`` or use ``AdaLoraTrainer``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from adalora.errors import UserError
from adalora.runtime.launch import ADVICE
from adalora.training.optimizer import advance_scheduler
from adalora.training.protocol import Adaptation


def refuse_data_parallel(args: Any) -> None:
    """Refuse several GPUs in one process, by a UserError.

    nn.DataParallel, which a Trainer then wraps around the model, computes on copies, and weighs the
    last batch of an epoch by the copies that it reached.
    """
    if args.n_gpu > 1:
        raise UserError(
            f"{args.n_gpu} GPUs are visible, and this one process would train copies of the model "
            f"on them (nn.DataParallel): start {ADVICE}, or show it one GPU (CUDA_VISIBLE_DEVICES)."
        )


class AdaLoraCallback(TrainerCallback):  # type: ignore[misc]
    """Calls an ``AdaLora`` at the right moments of a Trainer's life."""

    def __init__(self, adaptation: Adaptation) -> None:
        self.adaptation = adaptation

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Fix the schedule from the real number of optimizer steps of the run.

        Raises:
            UserError: as ``refuse_data_parallel``; if the run goes on from a checkpoint and the
                method does not (a stock Trainer's checkpoints do not hold its state).
        """
        refuse_data_parallel(args)
        if state.global_step == 0:
            self.adaptation.begin(state.max_steps)
        elif self.adaptation.settings.allocate and not self.adaptation.begun:
            raise UserError(
                f"This run goes on from step {state.global_step}, and the allocator's state is not "
                "in a checkpoint of a stock Trainer: use AdaLoraTrainer, or AdaLora.begin and "
                "AdaLora.load_state_dict before train()."
            )

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Update importance and prune, once per optimizer step."""
        self.adaptation.step(state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """A run whose allocator never did its work does not end silently."""
        self.adaptation.finish()


class LogLastStep(TrainerCallback):  # type: ignore[misc]
    """Logs the last step whatever ``logging_steps`` is.

    The installed Trainer averages the loss over the processes when it logs, and adds what it has
    not logged from the main process alone, so that ``train_loss`` would depend on their number.
    """

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Ask for a record at the end of the run."""
        if state.global_step >= state.max_steps:
            control.should_log = True


class LearningRateByStep(TrainerCallback):  # type: ignore[misc]
    """Keeps the learning rate, like the budget, a function of the step's index alone.

    Whether a step that overflowed in float16 moves the learning rate on would otherwise depend on
    the optimizer: fused ones pass over such a step inside their kernel, unseen by the Trainer.
    """

    def on_step_end(
        self, args: Any, state: TrainerState, control: Any, lr_scheduler: Any = None, **_: Any
    ) -> None:
        """Make up for the step that the schedule missed."""
        if isinstance(lr_scheduler, LambdaLR) and lr_scheduler.last_epoch < state.global_step:
            advance_scheduler(lr_scheduler, state.global_step - lr_scheduler.last_epoch)


class StopEarly(EarlyStoppingCallback):  # type: ignore[misc]
    """transformers' early stopping, which a resumed run remembers.

    Under AdaLoRA no evaluation before the final budget is taken for the best (see
    ``AdaLoraTrainer``), so none counts against the patience either.
    """

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Count on from the checkpoint; a run that had stopped stays so, unless patience grew."""
        known = cast("dict[str, Any]", state.stateful_callbacks if state.global_step else {})
        stored = known.get(type(self).__name__, {}).get("attributes", {})
        counted = stored.get("early_stopping_patience_counter", 0)
        self.early_stopping_patience_counter = counted
        control.should_training_stop = counted >= self.early_stopping_patience


class TrainingTime(TrainerCallback, ExportableState):  # type: ignore[misc]
    """How long training took, by the monotonic clock, which checkpoints keep.

    Args:
        seconds: of training, evaluation on the way included.
        evaluating: those of them that were spent on evaluation.
        since_epoch: where it was started, above 0 if the run was resumed from a checkpoint that
            held none.
    """

    def __init__(
        self, seconds: float = 0.0, evaluating: float = 0.0, since_epoch: float = 0.0
    ) -> None:
        self._before = seconds
        self._started: float | None = None
        self.evaluating, self.since_epoch = evaluating, since_epoch

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

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Count the time inside as evaluation, if it is during training."""
        before = self.seconds
        yield
        self.evaluating += self.seconds - before

    def state(self) -> dict[str, Any]:
        """What ``trainer_state.json`` keeps."""
        kept = {"seconds": self.seconds, "evaluating": self.evaluating}
        return {"args": {**kept, "since_epoch": self.since_epoch}}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Start, where the checkpoint stopped if there is one."""
        known = cast("dict[str, Any]", state.stateful_callbacks if state.global_step else {})
        kept = known.get(type(self).__name__, {}).get("args", {})
        self._before = float(kept.get("seconds", 0.0))
        self.evaluating = float(kept.get("evaluating", 0.0))
        self.since_epoch = float(kept.get("since_epoch", state.epoch or 0.0))
        self._started = time.monotonic()

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Stop."""
        self._before, self._started = self.seconds, None

"""What a Trainer forgets when it is interrupted, and where each part of it must come back.

The installed Trainer keeps its generators at the moment of the checkpoint. That is not enough for
an exact continuation: the order of an epoch may be drawn from the generators as they were when the
epoch began, the running means between two log records start again, and a checkpoint taken at the
last step of an epoch misses what happens at its end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState

from adalora.training.nonfinite import BadSteps

_REMEMBERED = (
    *("random", "random_at_epoch_start"),
    *("loss_sum", "loss_total", "last_logged_step", "penalty_sum", "penalty_count"),
)


@dataclass
class RunningMean:
    """Mean of a quantity since it was last recorded; adding to it does not wait for the device."""

    total: Tensor | None = None
    count: int = 0

    def add(self, value: Tensor) -> None:
        """Take in one value, a scalar."""
        value = value.detach()
        self.total = value if self.total is None else self.total + value
        self.count += 1

    def take(self) -> float | None:
        """The mean, from which it then starts anew; None if nothing was added."""
        mean = None if self.total is None else self.total.item() / self.count
        self.total, self.count = None, 0
        return mean


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Have parameters and buffers of ``model`` afterwards as they were, whatever casts them inside.

    Those of before stay in memory meanwhile.
    """
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for held, before in buffers:
            held.update(before)


def best_checkpoint(state: TrainerState, folder: Path) -> str | None:
    """The best checkpoint in ``folder``, wherever it lay when its path was written down."""
    path = folder / f"checkpoint-{state.best_global_step}"
    return str(path) if state.best_global_step and path.is_dir() else state.best_model_checkpoint


class Interruptible(Protocol):
    """What is kept of a Trainer: its own sums since the last log record, and ours."""

    state: TrainerState
    penalty: RunningMean
    bad_steps: BadSteps
    _tr_loss: Tensor
    _total_loss_scalar: float
    _globalstep_last_logged: int


class Continuation(TrainerCallback):  # type: ignore[misc]
    """The memory of one process: random generators and running means."""

    def __init__(self, trainer: Interruptible) -> None:
        self._trainer = trainer
        self._stored: Mapping[str, Any] | None = None
        self._epoch_start: dict[str, Any] = {}
        self._save_at_epoch_end = False

    def state(self) -> dict[str, Any]:
        """All that this process must remember: tensors and JSON values.

        ``random`` is the generators' state now, ``random_at_epoch_start`` as it was when the order
        of the running epoch was drawn; ``loss_sum`` and ``penalty_sum`` are float32 [] since the
        last record, ``loss_total`` the sum of the recorded losses.
        """
        trainer, now = self._trainer, random_state()
        epoch_is_over = float(trainer.state.epoch or 0).is_integer()
        return {
            "random": now,
            "random_at_epoch_start": now if epoch_is_over else self._epoch_start,
            "loss_sum": trainer._tr_loss,
            "loss_total": trainer._total_loss_scalar,
            "last_logged_step": trainer._globalstep_last_logged,
            "penalty_sum": trainer.penalty.total,
            "penalty_count": trainer.penalty.count,
            "bad_steps": asdict(trainer.bad_steps),
        }

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Have training continue from ``state``; None for a new start.

        The generators are put back at once as well: the seed of an epoch's order is taken from
        them when the Trainer builds its data loader.

        Raises:
            KeyError: if something is missing from ``state``.
        """
        if state is not None:
            # Checkpoints of before they were counted have none.
            bad = {"bad_steps": state.get("bad_steps", {})}
            state = {name: state[name] for name in _REMEMBERED} | bad
            set_random_state(state["random_at_epoch_start"])
        self._stored = state

    def restore_random_state(self) -> None:
        """Put the generators where they were at the checkpoint."""
        if self._stored is not None:
            set_random_state(self._stored["random"])

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Continue the running means, which the Trainer has just set to zero."""
        self._save_at_epoch_end = False
        # The checkpoint brought its own; how often is logged and saved does not belong to the run.
        state.compute_steps(args, state.max_steps)
        state.best_model_checkpoint = best_checkpoint(state, Path(str(args.output_dir)))
        stored, trainer = self._stored, self._trainer
        trainer.bad_steps = BadSteps()
        if stored is None:
            return
        trainer._tr_loss = stored["loss_sum"].to(trainer._tr_loss.device)
        trainer._total_loss_scalar = stored["loss_total"]
        trainer._globalstep_last_logged = stored["last_logged_step"]
        if (penalty := stored["penalty_sum"]) is not None:
            penalty = penalty.to(args.device)
        trainer.penalty = RunningMean(penalty, stored["penalty_count"])
        trainer.bad_steps = BadSteps(**stored["bad_steps"])

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Draw the order of the resumed epoch from where it was drawn the first time."""
        if self._stored is not None:
            set_random_state(self._stored["random_at_epoch_start"])
        self._epoch_start = random_state()

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """The first resumed step has everything; later epochs begin from the running generators."""
        self._stored = None

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """At the last step of an epoch, save after what is logged and evaluated at its end."""
        if control.should_save and float(state.epoch or 0).is_integer():
            control.should_save = False
            self._save_at_epoch_end = True

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Make up for the checkpoint that ``on_step_end`` put off."""
        if self._save_at_epoch_end:
            control.should_save = True
            self._save_at_epoch_end = False


def random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, on every CUDA device too.

    Returns:
        ``python`` [version, 625 integers, spare normal], ``numpy`` with ``key`` [624] uint32, and
        ``torch`` uint8; ``cuda`` maps a device's index to uint8.
    """
    version, internal, spare = random.getstate()
    _, key, position, has_normal, normal = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(internal), spare],
        "numpy": {
            "key": torch.from_numpy(np.array(key, dtype=np.uint32)),
            "rest": [int(position), int(has_normal), float(normal)],
        },
        "torch": torch.random.get_rng_state(),
        "cuda": {str(index): one for index, one in enumerate(cuda)},
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator where ``random_state`` found it; devices that are not here are left."""
    version, internal, spare = state["python"]
    random.setstate((version, tuple(internal), spare))
    np.random.set_state(("MT19937", state["numpy"]["key"].numpy(), *state["numpy"]["rest"]))
    torch.random.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, device_state in state.get("cuda", {}).items():
        if int(index) < devices:
            torch.cuda.set_rng_state(device_state, int(index))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside, the generators go on afterwards as if nothing had been."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)

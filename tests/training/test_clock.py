"""Clocks that are set while a run is at work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from adalora.storage.snapshots import newest_sound, snapshots
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.callbacks import TrainingTime
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
SETTINGS = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2)
HOUR = 3600.0


class SetClock(TrainerCallback):  # type: ignore[misc]
    """Sets the time of day, as this process sees it, in the middle of the work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, by: float) -> None:
        self.monkeypatch, self.by, self.real = monkeypatch, by, time.time

    def _set(self, *args: Any, **kwargs: Any) -> None:
        self.by *= 2
        self.monkeypatch.setattr(time, "time", lambda: self.real() + self.by)

    on_step_end = on_prediction_step = _set


@pytest.mark.parametrize("by", [-HOUR, HOUR])
def test_a_run_is_timed_by_the_monotonic_clock(
    make_model: Make,
    make_arguments: Make,
    examples: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    by: float,
) -> None:
    """Its record's seconds, and those of them that were spent on evaluation."""
    model = make_model()
    trainer = AdaLoraTrainer(
        model=model,
        args=make_arguments(eval_strategy="steps", eval_steps=4),
        adaptation=AdaLora(model, SETTINGS),
        train_dataset=examples,
        eval_dataset=examples[:16],
        callbacks=[SetClock(monkeypatch, by)],
    )
    started = time.monotonic()
    trainer.train()
    elapsed = time.monotonic() - started
    timed = TrainingTime.of(trainer)
    assert 0 < timed.evaluating < timed.seconds < elapsed
    evaluating, seconds = timed.evaluating, timed.seconds
    trainer.evaluate()
    assert (timed.evaluating, timed.seconds) == (evaluating, seconds)
    assert timed.state()["args"] == {
        "seconds": seconds,
        "evaluating": evaluating,
        "since_epoch": 0.0,
    }


def test_the_newest_checkpoint_is_the_one_of_the_last_step_whatever_the_clock_said(
    make_model: Make, make_arguments: Make, examples: list[Any]
) -> None:
    trainer = AdaLoraTrainer(
        model=make_model(),
        args=make_arguments(save_strategy="steps", save_steps=1, save_total_limit=4),
        train_dataset=examples,
    )

    class Backwards(TrainerCallback):  # type: ignore[misc]
        """Each checkpoint is older than the one before, by its date."""

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            date = 2e9 - HOUR * state.global_step
            os.utime(Path(args.output_dir) / f"checkpoint-{state.global_step}", (date, date))

    trainer.add_callback(Backwards())
    trainer.train()
    folder = Path(str(trainer.args.output_dir))
    assert [path.name for path in snapshots(folder)] == [f"checkpoint-{n}" for n in (9, 10, 11, 12)]
    assert newest_sound(folder) == folder / "checkpoint-12"

"""A signal in the middle of training: the step is finished, the checkpoint whole, the end exact."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from adalora.errors import Interrupted, UserError, exit_with_message
from adalora.runtime.failures import StopOnSignal
from adalora.storage.snapshots import snapshots, verify
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
SETTINGS = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2)


class Send(TrainerCallback):  # type: ignore[misc]
    """Sends this process a signal at an event of a step."""

    def __init__(self, number: int, event: str, step: int) -> None:
        def send(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), number)

        setattr(self, event, send)


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.fixture
def build(make_model: Make, make_arguments: Make, examples: list[Any], tmp_path: Path) -> Make:
    def make(name: str, *callbacks: TrainerCallback, **changes: Any) -> AdaLoraTrainer:
        model = make_model(dropout=0.1)
        return AdaLoraTrainer(
            model=model,
            args=make_arguments(root_output_dir=str(tmp_path / name), logging_steps=5, **changes),
            adaptation=AdaLora(model, SETTINGS),
            train_dataset=examples,
            eval_dataset=examples[:16],
            callbacks=list(callbacks),
        )

    return make


def run(trainer: AdaLoraTrainer, stop: StopOnSignal) -> None:
    with stop.handle_signals():
        trainer.train()


def log_of(trainer: AdaLoraTrainer) -> list[dict[str, Any]]:
    timed = ("runtime", "per_second", "flos")
    return [
        {key: value for key, value in entry.items() if not key.endswith(timed)}
        for entry in trainer.state.log_history
    ]


# Six steps are an epoch: the signal comes in the midst of one, at its last step, and at the end.
@pytest.mark.parametrize(
    ("number", "event", "step", "stops_after"),
    [
        (signal.SIGTERM, "on_step_begin", 4, 5),
        (signal.SIGINT, "on_step_begin", 5, 6),
        (signal.SIGTERM, "on_evaluate", 6, 7),
        (signal.SIGTERM, "on_step_begin", 11, 12),
        (signal.SIGINT, "on_evaluate", 12, 12),
    ],
)
def test_a_signal_leaves_a_checkpoint_from_which_the_run_ends_as_if_it_had_not_come(
    build: Make, number: int, event: str, step: int, stops_after: int
) -> None:
    stop, epochs = StopOnSignal(), {"eval_strategy": "epoch"}
    stopped = build("stopped", Send(number, event, step), stop, **epochs)
    assert exit_with_message(lambda: run(stopped, stop)) == 128 + number
    (checkpoint,) = snapshots(Path(str(stopped.args.output_dir)))
    assert verify(checkpoint).step == stops_after
    resumed = build("stopped", **epochs)
    resumed.train(resume_from_checkpoint=True)
    whole = build("whole", **epochs)
    whole.train()
    for (name, one), two in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
    assert log_of(resumed) == log_of(whole)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "step 3 of 12; its checkpoint was written: the same command goes on from"),
        ({"overwrite_output_dir": True}, "command with --resume_from_checkpoint True added goes"),
        ({"save_only_model": True}, "nothing can go on from .* which holds the model alone"),
    ],
)
def test_the_sentence_says_how_to_go_on(
    build: Make, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    stop = StopOnSignal()
    trainer = build("run", Send(signal.SIGTERM, "on_step_begin", 2), stop, **changes)
    with pytest.raises(
        Interrupted, match=f"Stopped by SIGTERM after {says}" if not changes else says
    ):
        run(trainer, stop)
    assert "SIGTERM: a checkpoint follows after this step" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_written_is_the_error_that_is_told(build: Make) -> None:
    stop = StopOnSignal()
    trainer = build("run", Send(signal.SIGTERM, "on_step_begin", 2), stop)
    obstacle = Path(str(trainer.args.output_dir)) / "checkpoint-3"
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("mine")
    with pytest.raises(UserError, match="checkpoint-3 could not be written"):
        run(trainer, stop)


def test_outside_training_a_signal_ends_the_program_where_it_is() -> None:
    stop = StopOnSignal()

    def main() -> None:
        with stop.handle_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except Exception:  # as libraries do, which tell it as a failure of their own
                pytest.fail("a signal is no Exception")

    assert exit_with_message(main) == 143


def test_the_second_signal_is_the_systems_own(build: Make) -> None:
    """It ends the process at once: tests/reliability does it to a real one."""
    stop, seen = StopOnSignal(), []

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None: ...

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append({signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)})

    trainer = build("run", Send(signal.SIGINT, "on_step_begin", 1), Look(), stop)
    with pytest.raises(Interrupted):
        run(trainer, stop)
    assert seen[-1] == {signal.SIG_DFL}
    assert signal.SIG_DFL not in seen[0]


def test_a_signal_that_the_program_was_started_to_ignore_stays_ignored(build: Make) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopOnSignal()
        trainer = build("run", Send(signal.SIGINT, "on_step_begin", 2), stop)
        run(trainer, stop)
        assert trainer.state.global_step == 12
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_program_without_a_sentence_of_its_own_ends_with_130(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    assert exit_with_message(main) == 130
    assert capsys.readouterr().err == "Interrupted.\n"

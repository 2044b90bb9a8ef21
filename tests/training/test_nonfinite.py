"""A batch whose loss is NaN or infinite, through the real Trainer: left out, counted, told."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from adalora.errors import UserError
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.nonfinite import MOST_IN_A_ROW
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
SETTINGS = AdaLoraSettings(target_rank=1, init_warmup=6, final_warmup=2, mask_interval=2)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Copies all that a step may change, after every step."""

    def __init__(self, adaptation: AdaLora) -> None:
        self.adaptation = adaptation
        self.states: list[dict[str, Tensor]] = []

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **kwargs: Any
    ) -> None:
        tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{index} {name}": value for name, value in moments.items()}
        assert self.adaptation.allocator is not None
        for kind, averages in self.adaptation.allocator.importance.state_dict().items():
            tensors |= {f"{kind} {name}": value for name, value in averages.items()}
        self.states.append({name: tensor.detach().clone() for name, tensor in tensors.items()})


@pytest.fixture
def build(make_model: Make, make_arguments: Make, examples: list[Any]) -> Make:
    """A regression in the order of the examples; those of the ``bad`` steps have a bad label."""

    def make(bad: dict[int, float], **changes: Any) -> tuple[AdaLoraTrainer, Watch]:
        model = make_model()
        model.config.problem_type, model.config.num_labels = "regression", 1
        model.num_labels = 1
        model.classifier = torch.nn.Linear(16, 1)
        rows = [{**row, "labels": float(row["labels"])} for row in examples[:24]]
        for step, value in bad.items():
            rows[2 * (step - 1)]["labels"] = value
        adaptation = AdaLora(model, SETTINGS)
        watch = Watch(adaptation)
        trainer = AdaLoraTrainer(
            model=model,
            args=make_arguments(
                per_device_train_batch_size=2,
                train_sampling_strategy="sequential",
                logging_steps=3,
                **changes,
            ),
            adaptation=adaptation,
            train_dataset=rows,
            callbacks=[watch],
        )
        return trainer, watch

    return make


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("changes", [{}, {"max_grad_norm": 0.0}, {"bf16": True}])
def test_a_bad_batch_changes_nothing_and_training_goes_on(
    build: Make, caplog: pytest.LogCaptureFixture, value: float, changes: dict[str, Any]
) -> None:
    trainer, watch = build({4: value}, **changes)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    before, after, next_one = watch.states[2:5]
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert any(not torch.equal(after[name], next_one[name]) for name in after)
    assert all(tensor.isfinite().all() for tensor in watch.states[-1].values())
    assert trainer.bad_steps.total == 1
    assert "Step 4 was left out" in caplog.text
    told = [entry.get("steps_left_out", 0) for entry in trainer.state.log_history]
    assert told == [0, 1, 0, 0, 0]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(torch.isfinite(torch.tensor(losses)))


def test_a_bad_micro_batch_takes_its_whole_step_with_it(build: Make) -> None:
    trainer, watch = build({4: float("nan")}, gradient_accumulation_steps=2)
    trainer.train()
    first, second = watch.states[:2]
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert trainer.bad_steps.total == 2  # the data passes twice


def test_the_count_survives_an_interruption(build: Make) -> None:
    trainer, _ = build({2: float("nan")}, save_strategy="steps", save_steps=6)
    trainer.train()
    resumed, _ = build({2: float("nan")})
    resumed.train(resume_from_checkpoint=str(trainer.args.output_dir) + "/checkpoint-6")
    assert resumed.bad_steps.total == trainer.bad_steps.total == 1


def test_too_many_in_a_row_end_the_run_in_a_sentence(build: Make) -> None:
    trainer, watch = build({step: float("nan") for step in range(2, 13)})
    with pytest.raises(
        UserError, match=f"in {MOST_IN_A_ROW} steps in a row, up to step 11; nothing"
    ):
        trainer.train()
    first, last = watch.states[0], watch.states[-1]
    # Pruning goes on by its schedule.
    learnt = [name for name in last if not name.endswith("lora_E")]
    assert all(torch.equal(first[name], last[name]) for name in learnt)
    # No loss of zero is told where there was none.
    losses = [entry["loss"] for entry in trainer.state.log_history]
    assert math.isfinite(losses[0])
    assert math.isnan(losses[1])


def test_bad_steps_between_good_ones_do_not_end_it(build: Make) -> None:
    trainer, _ = build(dict.fromkeys(range(2, 11, 2), float("nan")), max_steps=24)
    trainer.train()
    assert trainer.bad_steps.total == 10

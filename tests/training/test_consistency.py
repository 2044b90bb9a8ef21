"""``--reg_loss_wgt`` and ``--masking_prob`` in the Trainer: in training alone, on every method."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.losses import consistency_loss, mask_tokens
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
#: What the loss asks of a tokenizer.
TOKENIZER = SimpleNamespace(unk_token_id=3, all_special_ids=[0, 5], save_pretrained=lambda _: None)


@pytest.fixture
def batch(examples: list[Any]) -> dict[str, Tensor]:
    return {
        "input_ids": torch.stack([row["input_ids"] for row in examples[:16]]),
        "labels": torch.tensor([row["labels"] for row in examples[:16]]),
    }


@pytest.fixture
def build(make_model: Make, make_arguments: Make, examples: list[Any]) -> Make:
    def make(weight: float, probability: float, **changes: Any) -> AdaLoraTrainer:
        model = make_model(dropout=changes.pop("dropout", 0.1))
        settings = changes.pop("settings", None)
        trainer = AdaLoraTrainer(
            model=model,
            args=make_arguments(**changes),
            adaptation=None if settings is None else AdaLora(model, settings),
            reg_loss_wgt=weight,
            masking_prob=probability,
            train_dataset=examples,
            eval_dataset=examples,
        )
        trainer.processing_class = TOKENIZER
        return trainer

    return make


def test_the_training_loss_is_that_of_two_passes_with_tokens_masked_in_the_second(
    build: Make, batch: dict[str, Tensor]
) -> None:
    trainer = build(2.0, 0.4)
    model = trainer.model.train()
    torch.manual_seed(11)
    found = trainer.compute_loss(model, dict(batch))
    torch.manual_seed(11)
    masked = mask_tokens(batch["input_ids"], probability=0.4, unknown_id=3, special_ids=[0, 5])
    assert (masked == 3).any()
    assert torch.equal(masked == 5, batch["input_ids"] == 5)
    assert torch.equal(found, consistency_loss(model, batch, masked, 2.0))


def test_evaluation_and_a_weight_of_zero_see_one_plain_pass(
    build: Make, batch: dict[str, Tensor]
) -> None:
    trainer, plain = build(2.0, 0.4), build(0.0, 0.0)
    expected = plain.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)
    model = plain.model.train()
    torch.manual_seed(11)
    found = plain.compute_loss(model, dict(batch))
    torch.manual_seed(11)
    assert torch.equal(found, model(**batch).loss)


def test_it_is_added_to_beside_the_penalty_and_trains(
    build: Make, batch: dict[str, Tensor]
) -> None:
    settings = AdaLoraSettings(
        target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2, orth_reg_weight=0.5
    )
    trainer = build(1.0, 0.2, settings=settings, dropout=0.0, max_steps=24)
    model = trainer.model.train()
    torch.manual_seed(3)
    whole = trainer.compute_loss(model, dict(batch))
    penalty = trainer.adaptation.penalty()
    torch.manual_seed(3)
    masked = mask_tokens(batch["input_ids"], probability=0.2, unknown_id=3, special_ids=[0, 5])
    torch.testing.assert_close(whole - penalty, consistency_loss(model, batch, masked, 1.0))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert sum(trainer.adaptation.rank_pattern().values()) == 12

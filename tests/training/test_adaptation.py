"""The method over one model: schedule, penalty, step, state, and the errors around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adalora.errors import UserError
from adalora.training.adaptation import AdaLora, AdaLoraSettings

MATRICES = 12  # six in each of the tiny model's two layers


def train(model: Any, adaptation: AdaLora, examples: list[Any], steps: range) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in steps:
        batch = [examples[(step * 8 + i) % len(examples)] for i in range(8)]
        ids = torch.stack([row["input_ids"] for row in batch])
        labels = torch.tensor([row["labels"] for row in batch])
        (model(input_ids=ids, labels=labels).loss + adaptation.penalty()).backward()
        optimizer.step()
        adaptation.step(step)
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("init_warmup", "final_warmup", "expected"),
    [(0.1, 0.3, (10, 30)), (7, 0.25, (7, 25)), (0, 20, (0, 20))],
)
def test_warm_ups_are_steps_or_fractions_of_the_run(
    init_warmup: float, final_warmup: float, expected: tuple[int, int]
) -> None:
    settings = AdaLoraSettings(init_warmup=init_warmup, final_warmup=final_warmup)
    assert settings.steps(100) == expected


@pytest.mark.parametrize(("steps", "fits"), [(2401, True), (2400, False), (20, False)])
def test_a_schedule_without_decay_is_refused_with_its_numbers(steps: int, fits: bool) -> None:
    settings = AdaLoraSettings(target_rank=1, init_warmup=600, final_warmup=1800)
    if fits:
        assert settings.schedule(24, 12, steps).total_step == steps
    else:
        with pytest.raises(UserError, match=rf"600.*1800.*{steps} steps"):
            settings.schedule(24, 12, steps)


def test_a_run_prunes_to_its_target_and_knows_its_pattern(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    model = make_model(init_rank=3)
    adaptation = AdaLora(model, AdaLoraSettings(target_rank=1, mask_interval=1))
    assert adaptation.total_rank == 3 * MATRICES
    assert set(adaptation.rank_pattern().values()) == {3}
    adaptation.begin(20)
    train(model, adaptation, examples, range(20))
    adaptation.finish()
    pattern = adaptation.rank_pattern()
    assert sum(pattern.values()) == MATRICES
    nonzero = {
        f"{path}.lora_E": int((layer.lora_E != 0).sum())
        for path, layer in model.named_modules()
        if f"{path}.lora_E" in pattern
    }
    assert nonzero == pattern


def test_the_penalty_is_zero_without_a_coefficient_and_positive_with_one(
    make_model: Callable[..., Any],
) -> None:
    model = make_model()
    assert AdaLora(model, AdaLoraSettings(orth_reg_weight=0)).penalty().item() == 0
    one, two = (AdaLora(model, AdaLoraSettings(orth_reg_weight=w)).penalty() for w in (0.1, 0.2))
    assert one.item() > 0
    torch.testing.assert_close(two, 2 * one)


def test_plain_lora_has_a_penalty_of_its_own(make_model: Callable[..., Any]) -> None:
    model = make_model(lora_type="frd")
    adaptation = AdaLora(model, AdaLoraSettings(allocate=False, orth_reg_weight=0.1))
    penalty = adaptation.penalty()
    penalty.backward()
    assert penalty.isfinite()
    assert adaptation.step(0) == (None, None)
    assert adaptation.rank_pattern() == {}


def test_allocation_on_a_model_without_singular_values_is_refused(
    make_model: Callable[..., Any],
) -> None:
    with pytest.raises(UserError, match="no SVD layer"):
        AdaLora(make_model(lora_type="frd"), AdaLoraSettings())
    with pytest.raises(UserError, match="no LoRA layer"):
        AdaLora(torch.nn.Linear(2, 2), AdaLoraSettings(allocate=False))


def test_a_run_whose_allocator_was_never_called_does_not_end_silently(
    make_model: Callable[..., Any],
) -> None:
    adaptation = AdaLora(make_model(), AdaLoraSettings(target_rank=1))
    with pytest.raises(UserError, match=r"before AdaLora\.begin"):
        adaptation.step(0)
    adaptation.begin(20)
    with pytest.raises(UserError, match="never called"):
        adaptation.finish()


def test_a_step_after_zero_grad_is_found_out_at_the_end(make_model: Callable[..., Any]) -> None:
    adaptation = AdaLora(make_model(), AdaLoraSettings(target_rank=1))
    adaptation.begin(20)
    for step in range(20):
        adaptation.step(step)
    with pytest.raises(UserError, match="no usable gradient in any of 20 steps"):
        adaptation.finish()


def test_a_target_above_the_start_is_refused(make_model: Callable[..., Any]) -> None:
    adaptation = AdaLora(make_model(init_rank=2), AdaLoraSettings(target_rank=5))
    with pytest.raises(UserError, match=r"target of 60 triplets is above the 24"):
        adaptation.begin(100)


@pytest.mark.parametrize("stop", [1, 5, 12, 18])
def test_resuming_from_the_state_continues_exactly(
    make_model: Callable[..., Any], examples: list[Any], stop: int
) -> None:
    settings = AdaLoraSettings(target_rank=1, mask_interval=3)
    whole = make_model()
    reference = AdaLora(whole, settings)
    reference.begin(20)
    train(whole, reference, examples, range(20))

    first = make_model()
    adaptation = AdaLora(first, settings)
    adaptation.begin(20)
    train(first, adaptation, examples, range(stop))
    second = make_model()
    second.load_state_dict(first.state_dict())
    resumed = AdaLora(second, settings)
    resumed.begin(20)
    resumed.load_state_dict(adaptation.state_dict())
    train(second, resumed, examples, range(stop, 20))

    assert resumed.rank_pattern() == reference.rank_pattern()
    for (name, one), two in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_the_state_of_another_schedule_is_refused(make_model: Callable[..., Any]) -> None:
    adaptations = []
    for total in (20, 30):
        adaptation = AdaLora(make_model(), AdaLoraSettings(target_rank=1))
        adaptation.begin(total)
        adaptations.append(adaptation)
    with pytest.raises(UserError, match=r"20|30"):
        adaptations[1].load_state_dict(adaptations[0].state_dict())

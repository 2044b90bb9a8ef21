"""The allocator: its end, its masks, its state, its records, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import loralib


def test_a_run_ends_at_its_target_and_its_pattern_counts_the_survivors(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], run: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model)
    results = run(model, allocator, range(20))
    assert [budget for budget, _ in results][-1] == 3
    pattern = allocator.get_rank_pattern()
    assert list(pattern) == [f"layers.{i}.lora_E" for i in range(3)]
    nonzero = [int((layer.lora_E != 0).sum()) for layer in model.layers]
    assert list(pattern.values()) == nonzero
    assert sum(nonzero) == 3
    assert allocator.rank_pattern == pattern
    assert allocator.mask_events == sum(threshold is not None for _, threshold in results)


def test_a_pruned_triplet_can_come_back_before_the_final_phase(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], run: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, target_rank=2, mask_interval=4)
    run(model, allocator, range(9))
    gone = [layer.lora_E == 0 for layer in model.layers]
    assert any(mask.any() for mask in gone)
    run(model, allocator, range(9, 10))
    assert all(
        (layer.lora_E[mask] != 0).all() for layer, mask in zip(model.layers, gone, strict=True)
    )


def test_a_budget_of_all_triplets_masks_nothing(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], run: Callable[..., Any]
) -> None:
    model = make_stack()
    results = run(model, make_allocator(model, target_rank=3), range(20))
    assert all(threshold is None for _, threshold in results)
    assert all((layer.lora_E != 0).all() for layer in model.layers)


@pytest.mark.parametrize("stop", [1, 3, 7, 12, 17, 19])
def test_resuming_from_the_state_is_bit_equal(
    stop: int,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
    run: Callable[..., Any],
) -> None:
    whole = make_stack()
    run(whole, make_allocator(whole), range(20))
    first = make_stack()
    allocator = make_allocator(first)
    run(first, allocator, range(stop))
    second = make_stack()
    second.load_state_dict(first.state_dict())
    resumed = make_allocator(second)
    resumed.load_state_dict(allocator.state_dict())
    run(second, resumed, range(stop, 20))
    assert resumed.steps_seen == 20
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_step": 25}, "total_step 20 there, 25 here"),
        ({"target_rank": 2}, "target_total_rank 3 there, 6 here"),
        ({"beta1": 0.5}, "beta1 0.85 there, 0.5 here"),
    ],
)
def test_the_state_of_another_schedule_is_refused_with_the_difference(
    change: dict[str, Any],
    message: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    model = make_stack()
    state = make_allocator(model).state_dict()
    with pytest.raises(ValueError, match=message):
        make_allocator(model, **change).load_state_dict(state)


def test_the_state_of_another_model_is_refused(make_allocator: Callable[..., Any]) -> None:
    def model(width: int) -> nn.Module:
        return nn.Sequential(*(loralib.SVDLinear(width, 4, r=3) for _ in range(2)))

    state = make_allocator(model(4)).state_dict()
    with pytest.raises(ValueError, match=r"0\.lora_A has shape \[3, 4\], expected \[3, 5\]"):
        make_allocator(model(5)).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_rank": 4}, "target of 12 triplets is above the 9"),
        ({"beta1": 1.0}, r"beta1 is 1\.0; it must be above 0 and below 1"),
        ({"beta2": 0.0}, r"beta2 is 0\.0; it must be above 0 and below 1"),
        ({"total_step": 6}, "total_step is 6"),
        ({"tb_writter_loginterval": 0}, "got 0"),
    ],
)
def test_a_bad_number_is_an_error_that_shows_it(
    change: dict[str, Any],
    message: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    with pytest.raises(ValueError, match=message):
        make_allocator(make_stack(), **change)


def test_a_missing_total_step_is_an_error_that_shows_the_numbers(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, total_step=None)
    with pytest.raises(ValueError, match=r"total_step was never set.*init_warmup 2"):
        allocator.update_and_mask(model, 0)
    allocator.set_total_step(20)
    assert allocator.update_and_mask(model, 0)[0] == 9


def test_a_model_without_svd_layers_is_an_error(make_allocator: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="RankAllocator needs at least one SVDLinear"):
        make_allocator(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="compute_orth_regu needs at least one SVDLinear"):
        loralib.compute_orth_regu(nn.Linear(2, 2))


def test_a_wrapped_model_is_the_same_model(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], run: Callable[..., Any]
) -> None:
    bare, wrapped = make_stack(), nn.DataParallel(make_stack())
    run(bare, make_allocator(bare), range(20))
    allocator = make_allocator(wrapped)
    run(wrapped, allocator, range(20))
    assert list(allocator.get_rank_pattern()) == [f"layers.{i}.lora_E" for i in range(3)]
    for one, two in zip(bare.parameters(), wrapped.parameters(), strict=True):
        assert torch.equal(one, two)


class Recorder:
    """Takes the place of a SummaryWriter."""

    def __init__(self) -> None:
        self.tags: dict[str, list[int]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert isinstance(value, int | float)
        self.tags.setdefault(tag, []).append(step)


def test_the_originals_records_are_written_at_their_interval(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], run: Callable[..., Any]
) -> None:
    model, writer = make_stack(), Recorder()
    run(model, make_allocator(model, tb_writter=writer, tb_writter_loginterval=6), range(20))
    assert writer.tags["train/orth_regu_loss"] == [0, 6, 12, 18]
    assert writer.tags["Orth_regu_loss/layers.0.lora_A"] == [0, 6, 12, 18]
    for tag in ("Ranknum/layers.2.lora_E", "Budget/total_rank", "Budget/mask_threshold"):
        assert writer.tags[tag] == [6, 12, 18]
    assert writer.tags["Budget/sum_param"] == [6, 12, 18]


@pytest.mark.parametrize("allocation", loralib.ALLOCATIONS)
def test_a_ready_schedule_is_the_one_that_is_followed(
    allocation: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
    run: Callable[..., Any],
) -> None:
    by_numbers, by_schedule = make_stack(), make_stack()
    numbers = make_allocator(by_numbers, target_rank=2, allocation=allocation)
    # A falling budget leaves the choice between pruning and its controls.
    chosen = {"allocation": allocation} if numbers.schedule.allocation != allocation else {}
    allocator = loralib.RankAllocator.from_schedule(
        by_schedule, numbers.schedule, beta1=0.85, beta2=0.85, **chosen
    )
    assert allocator.schedule is numbers.schedule
    assert allocator.allocation == allocation
    first, second = run(by_numbers, numbers, range(20)), run(by_schedule, allocator, range(20))
    assert [budget for budget, _ in first] == [budget for budget, _ in second]
    assert numbers.get_rank_pattern() == allocator.get_rank_pattern()
    with pytest.raises(ValueError, match="is for 9 triplets, and the model has 12"):
        loralib.RankAllocator.from_schedule(
            make_stack(rank=4), numbers.schedule, beta1=0.85, beta2=0.85
        )


VARIANTS = [
    *({"importance_score": score} for score in ("uncertainty", "sensitivity", "magnitude")),
    *({"allocation": allocation} for allocation in loralib.ALLOCATIONS if allocation != "prune"),
]


def moved_step(model: nn.Module, allocator: Any, device: str, step: int) -> None:
    """One step with gradients as they would be on ``device``."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    allocator.update_and_mask(model, step)
    scores = allocator.importance.scores()
    assert {scores.device.type, allocator._skipped.device.type} == {device}
    assert {kept.device.type for kept in allocator.survivors().values()} == {device}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_model_may_be_moved_after_its_allocator_was_made(
    variant: dict[str, Any], make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, target_rank=2, init_warmup=0, mask_interval=1, **variant)
    for step, device in enumerate(["cpu", "meta", "meta"]):
        moved_step(model.to(device), allocator, device, step)
    late = make_stack().to("meta")
    allocator = make_allocator(late, target_rank=2, init_warmup=0, mask_interval=1, **variant)
    moved_step(late.to_empty(device="cpu"), allocator, "cpu", 0)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_moving_loses_nothing(
    variant: dict[str, Any],
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
    run: Callable[..., Any],
) -> None:
    models = make_stack(), make_stack()
    stayed, moved = (make_allocator(model, target_rank=2, **variant) for model in models)
    run(models[0], stayed, range(20))
    run(models[1], moved, range(7))
    moved._follow()
    run(models[1], moved, range(7, 20))
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two), name
    assert stayed.get_rank_pattern() == moved.get_rank_pattern()
    assert stayed.skipped_steps == moved.skipped_steps


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_scores_that_stand_still_are_ordered_once(
    variant: dict[str, Any],
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
    run: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the final phase; the result is that of ordering them at every step."""
    models = make_stack(), make_stack()
    once, every = (make_allocator(m, target_rank=2, final_warmup=9, **variant) for m in models)
    first = run(models[0], once, range(14))
    selected = every._select
    monkeypatch.setattr(
        every, "_select", lambda budget: (setattr(every, "_settled", None), selected(budget))[1]
    )
    second = run(models[1], every, range(14))
    scores, asked = once.importance.scores, []
    monkeypatch.setattr(once.importance, "scores", lambda: asked.append(1) or scores())
    first += run(models[0], once, range(14, 20))
    second += run(models[1], every, range(14, 20))
    assert first == second
    assert once.mask_events == every.mask_events
    if variant.get("allocation") not in ("grow", "exchange"):
        assert asked == []
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two), name

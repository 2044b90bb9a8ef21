"""The controls and the exchange: what each rule keeps, by laws that hold at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.loralib.conftest import Plain, train
from torch import Tensor, nn

import loralib
from loralib.selection import make_rule

Make = Callable[..., Any]
CONTROLS = ("uniform", "random", "frozen")
STEPS = 30


def followed(model: Any, allocator: loralib.RankAllocator) -> list[tuple[int, Tensor, list[int]]]:
    """Budget, survivors [triplets] and ranks after each of the steps that follow the warm-up."""
    found = []
    for step in range(STEPS):
        train(model, allocator, range(step, step + 1))
        survivors = torch.cat(list(allocator.survivors().values()))
        ranks = list(allocator.get_rank_pattern().values())
        found.append((allocator.schedule.budget(step), survivors, ranks))
    return found


@pytest.mark.parametrize("allocation", ["prune", *CONTROLS])
@pytest.mark.parametrize("target", [1, 2])
def test_whatever_the_rule_the_budget_is_the_same_at_every_step(
    allocation: str, target: int, make_stack: Make, make_allocator: Make
) -> None:
    model = make_stack(rank=4)
    settings = {"target_rank": target, "total_step": STEPS}
    allocator = make_allocator(model, **settings, allocation=allocation)
    usual = make_allocator(make_stack(rank=4), **settings)
    schedule = usual.schedule
    last = 12
    for step, (budget, survivors, ranks) in enumerate(followed(model, allocator)):
        assert budget == schedule.budget(step)
        last = budget if schedule.masks(step) else last
        assert int(survivors.sum()) == sum(ranks) == last
    assert last == 3 * target
    for layer, kept in zip(model.layers, allocator.survivors().values(), strict=True):
        assert torch.equal(layer.lora_E[:, 0] != 0, kept)


def test_uniform_keeps_equal_ranks_and_each_matrix_its_own_best(
    make_stack: Make, make_allocator: Make
) -> None:
    model = make_stack(rank=4)
    allocator = make_allocator(model, target_rank=2, total_step=STEPS, allocation="uniform")
    seen = set()
    for budget, _, ranks in followed(model, allocator):
        assert max(ranks) - min(ranks) <= 1
        seen.add(budget)
    assert ranks == [2, 2, 2]
    # Budgets that are no multiple of three matrices were among them.
    assert any(budget % 3 for budget in seen)
    scores = allocator.importance.scores().split(4)
    for kept, own in zip(allocator.survivors().values(), scores, strict=True):
        assert own[kept].min() >= own[~kept].max()


def test_uniform_differs_from_pruning_where_one_matrix_has_all_the_importance() -> None:
    scores = torch.tensor([9.0, 8.0, 7.0, 1.0, 3.0, 2.0, 5.0])
    everything = torch.ones(7, dtype=torch.bool)

    def keeps(allocation: str, budget: int) -> list[int]:
        rule = make_rule(allocation, [3, 3, 1], scores.device, budget=3)
        return sorted(rule.order(rule.judged(scores), everything).indices[:budget].tolist())

    assert keeps("prune", 3) == [0, 1, 2]
    assert keeps("uniform", 3) == [0, 4, 6]
    # The next one goes to the matrix whose next triplet is best; one matrix has no more.
    assert keeps("uniform", 4) == [0, 1, 4, 6]
    assert keeps("uniform", 5) == [0, 1, 4, 5, 6]


@pytest.mark.parametrize("allocation", ["random", "frozen"])
def test_of_one_order_nothing_pruned_returns(
    allocation: str, make_stack: Make, make_allocator: Make
) -> None:
    model = make_stack(rank=4)
    allocator = make_allocator(model, total_step=STEPS, allocation=allocation)
    before = torch.ones(12, dtype=torch.bool)
    for _, survivors, _ in followed(model, allocator):
        assert not (survivors & ~before).any()
        before = survivors


def test_frozen_decides_by_the_scores_of_the_first_allocation_and_no_others(
    make_stack: Make, make_allocator: Make
) -> None:
    model = make_stack(rank=4)
    allocator = make_allocator(model, total_step=STEPS, allocation="frozen")
    first = next(step for step in range(STEPS) if allocator.schedule.masks(step))
    train(model, allocator, range(first + 1))
    then = allocator.importance.scores()
    train(model, allocator, range(first + 1, STEPS))
    assert not torch.equal(allocator.importance.scores(), then)
    kept = torch.cat(list(allocator.survivors().values()))
    best = torch.sort(then, descending=True, stable=True).indices[:3]
    assert kept.nonzero()[:, 0].tolist() == sorted(best.tolist())


def test_by_lot_is_the_seeds_and_neither_the_scores_nor_the_training(
    make_stack: Make, make_allocator: Make
) -> None:
    kept = {}
    for seed in (1, 1, 2, 3):
        for score in ("uncertainty", "magnitude"):
            model = make_stack(rank=4)
            if score == "magnitude":
                nn.init.normal_(model.head.weight)
            torch.manual_seed(seed)
            drawn = torch.get_rng_state()
            settings = {"total_step": STEPS, "importance_score": score, "allocation": "random"}
            allocator = make_allocator(model, **settings)
            # Training draws the numbers that it would draw without a control.
            assert torch.equal(torch.get_rng_state(), drawn)
            train(model, allocator, range(STEPS))
            mask = tuple(torch.cat(list(allocator.survivors().values())).tolist())
            assert kept.setdefault(seed, mask) == mask
    assert len(set(kept.values())) > 1


@pytest.mark.parametrize("score", loralib.SCORES)
def test_an_exchange_keeps_the_budget_and_moves_ranks_to_the_best(
    score: str, make_stack: Make, make_allocator: Make
) -> None:
    model = make_stack(rank=4)
    settings = {"target_rank": 2, "total_step": STEPS, "final_warmup": 8}
    allocator = make_allocator(model, **settings, allocation="exchange", importance_score=score)
    assert list(allocator.get_rank_pattern().values()) == [2, 2, 2]
    before, moved, final = [2, 2, 2], 0, None
    for step, (budget, survivors, ranks) in enumerate(followed(model, allocator)):
        assert budget == sum(ranks) == 6
        assert min(ranks) >= 1
        changes = [now - then for now, then in zip(ranks, before, strict=True)]
        assert sorted(changes) in ([0, 0, 0], [-1, 0, 1])
        moved += any(changes)
        if step > STEPS - 8:
            assert final is None or torch.equal(survivors, final)
            final = survivors
        before = ranks
    assert moved > 0
    for layer, kept in zip(model.layers, allocator.survivors().values(), strict=True):
        assert torch.equal(layer.lora_E[:, 0] != 0, kept)


@pytest.mark.parametrize(
    ("scores", "survivors", "expected"),
    [
        # The worst of the worst goes, and its matrix is not the one that grows.
        ([5, 4, 0, 1, 2, 0, 3, 6, 0], [0, 1, 3, 4, 6, 7], [0, 1, 2, 4, 6, 7]),
        # A matrix with one triplet keeps it, and then nothing moves.
        ([5, 4, 0, 1, 0, 0, 3, 6, 7], [0, 1, 3, 6, 7, 8], [0, 1, 3, 6, 7, 8]),
        # A matrix without room gets none, and what would have been given stays.
        ([5, 4, 6, 1, 2, 0, 3, 0, 0], [0, 1, 2, 3, 4, 6], [0, 1, 2, 3, 4, 6]),
    ],
)
def test_an_exchange_by_hand(
    scores: list[float], survivors: list[int], expected: list[int]
) -> None:
    rule = make_rule("exchange", [3, 3, 3], torch.device("cpu"), budget=6)
    alive = torch.zeros(9, dtype=torch.bool)
    alive[survivors] = True
    order = rule.order(torch.tensor(scores, dtype=torch.float32), alive)
    assert sorted(order.indices[:6].tolist()) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_rank": 4}, "target of 12 triplets is above the 9"),
        ({"target_total_rank": 2}, "target of 2 triplets is below one for each of the 3 matrices"),
        ({"final_warmup": 1}, "final_warmup is 1: growing ranks need at least 2"),
        ({"init_warmup": 16}, "leave no exchange phase"),
    ],
)
def test_an_exchange_that_cannot_be_is_refused(
    change: dict[str, int], message: str, make_stack: Make, make_allocator: Make
) -> None:
    with pytest.raises(ValueError, match=message):
        make_allocator(make_stack(), **{"target_rank": 2, **change}, allocation="exchange")


def test_a_schedule_says_which_allocations_it_is_for(make_stack: Make) -> None:
    phases = {"init_warmup": 2, "final_warmup": 4, "mask_interval": 2, "total_step": 20}
    falling = loralib.BudgetSchedule(9, 3, **phases)
    betas = {"beta1": 0.85, "beta2": 0.85}
    make = loralib.RankAllocator.from_schedule
    for allocation in ("prune", *CONTROLS):
        made = make(make_stack(), falling, **betas, allocation=allocation)
        assert made.allocation == allocation
    for allocation in ("grow", "exchange"):
        with pytest.raises(ValueError, match=f"says 'prune', and allocation is '{allocation}'"):
            make(make_stack(), falling, **betas, allocation=allocation)
    pruned = make(Plain(), falling, **betas, lora_type="frd", allocation="frozen")
    assert pruned.total_rank == 9

"""Ranks that grow: the schedule, which matrices get more, what is masked meanwhile, learning."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import loralib
from loralib.ranked import svd_layers

GOOD = {
    "total_rank": 6,
    "target_total_rank": 14,
    "init_warmup": 10,
    "final_warmup": 20,
    "mask_interval": 5,
    "total_step": 100,
    "most": 24,
}


def test_the_budget_rises_evenly_from_one_triplet_per_matrix_to_the_target() -> None:
    schedule = loralib.GrowthSchedule(**GOOD)
    budgets = [schedule.budget(step) for step in range(100)]
    assert budgets[:11] == [6] * 11
    assert budgets[80:] == [14] * 20
    assert all(0 <= b - a <= 1 for a, b in pairwise(budgets))
    assert schedule.budget(45) == 10  # half way
    told = {name: value for name, value in GOOD.items() if name != "total_rank"}
    assert loralib.make_schedule("grow", matrices=6, **told) == schedule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_total_rank": 24}, None),
        ({"target_total_rank": 25}, "to at most 24 .lora_r., and the target of 25"),
        ({"target_total_rank": 6}, None),
        ({"target_total_rank": 5}, "from 6 triplets, one per matrix.* the target of 5"),
        ({"final_warmup": 2}, None),
        ({"final_warmup": 1}, "final_warmup is 1: growing ranks need at least 2"),
        ({"total_step": 30}, "leave no growth phase, because total_step is 30"),
    ],
)
def test_a_growth_that_cannot_be_is_refused(change: dict[str, int], message: str | None) -> None:
    values = {**GOOD, **change}
    if message is None:
        assert loralib.GrowthSchedule(**values).budget(99) == values["target_total_rank"]
    else:
        with pytest.raises(ValueError, match=message):
            loralib.GrowthSchedule(**values)


def step(model: Any, optimizer: torch.optim.Optimizer, number: int) -> float:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(number)).double()
    loss = nn.functional.cross_entropy(model(x), (x[:, 0] * x[:, 1] > 0).long())
    (loss + loralib.compute_orth_regu(model, 0.1)).backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("score", loralib.SCORES)
def test_ranks_grow_by_the_budget_and_what_has_not_grown_moves_nothing(
    score: str, make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    for parameter in model.head.parameters():
        parameter.requires_grad = True
    x = torch.randn(4, 6).double()
    plain = nn.Sequential(
        *(nn.Linear(m.in_features, m.out_features).double() for m in model.layers)
    )
    for linear, layer in zip(plain, model.layers, strict=True):
        linear.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    base = x
    for linear in plain:
        base = torch.tanh(linear(base))
    assert torch.equal(model(x), model.head(base))

    allocator = make_allocator(
        model,
        target_rank=2,
        total_step=40,
        final_warmup=10,
        importance_score=score,
        allocation="grow",
    )
    assert set(allocator.get_rank_pattern().values()) == {1}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses, before = [], [1, 1, 1]
    for number in range(40):
        losses.append(step(model, optimizer, number))
        budget, threshold = allocator.update_and_mask(model, number)
        optimizer.zero_grad()
        ranks = list(allocator.get_rank_pattern().values())
        if threshold is not None:
            assert sum(ranks) == budget
        assert all(now >= then for now, then in zip(ranks, before, strict=True))
        before = ranks
        for layer, rank in zip(model.layers, ranks, strict=True):
            assert (layer.lora_E[:rank] != 0).all()
            # One triplet in reserve learns its vectors until the ranks are final.
            waiting = layer.lora_E[rank:, 0].tolist()
            held = [1e-5] if budget < 6 and waiting else []
            assert waiting == held + [0.0] * (len(waiting) - len(held))
    assert sum(before) == 6
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_vectors_in_reserve_hear_of_the_task(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, allocation="grow", target_rank=2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for number in range(2):
        optimizer.zero_grad()
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(number)).double()
        nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        allocator.update_and_mask(model, number)
    for layer in model.layers:
        heard = (layer.lora_A.grad != 0).any(dim=1).tolist()
        assert heard == [True, True, False]


def test_growth_to_all_triplets_ends_with_every_one(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, allocation="grow", target_rank=3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for number in range(20):
        step(model, optimizer, number)
        allocator.update_and_mask(model, number)
        optimizer.zero_grad()
    assert set(allocator.get_rank_pattern().values()) == {3}
    assert all((layer.lora_E != 0).all() for layer in svd_layers(model).values())

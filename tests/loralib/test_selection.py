"""Which triplets a budget buys (eq. 5-8 of AdaLoRA, and growth), against slow versions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import loralib
from loralib.selection import Growth


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=9, max_size=9),
    budget=st.integers(0, 9),
)
def test_exactly_the_budget_survives_ties_and_earlier_triplets_win(
    values: list[float], budget: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(loralib.SVDLinear(4, 4, r=3, merge_weights=False) for _ in range(3)))
    allocator = loralib.RankAllocator(model, 3, 1, 1, 1, 1, 0.5, 0.5, total_step=10)
    for layer in model:
        nn.init.ones_(layer.lora_E)
    scores = torch.tensor(values)
    allocator.importance.scores = lambda: scores.clone()  # type: ignore[method-assign]
    threshold = allocator._select(budget)
    allocator._mask(budget, chosen=threshold is not None)
    kept = torch.cat([layer.lora_E.flatten() for layer in model]) != 0
    best = sorted(range(9), key=lambda i: (-values[i], i))[:budget]
    assert sorted(kept.nonzero().flatten().tolist()) == sorted(best)
    if budget == 9:
        assert threshold is None
    else:
        assert threshold is not None
        assert threshold.item() == sorted(values)[9 - budget - 1]


def slow_growth(ranks: list[int], now: list[int], scores: list[float], budget: int) -> list[int]:
    """Ranks after growth, one triplet after the other."""
    starts = [sum(ranks[:i]) for i in range(len(ranks))]
    means = [sum(scores[s : s + n]) / n for s, n in zip(starts, now, strict=True)]
    turn_order = sorted(range(len(ranks)), key=lambda i: (-means[i], i))
    grown = list(now)
    while sum(grown) < budget:
        for index in turn_order:
            if sum(grown) < budget and grown[index] < ranks[index]:
                grown[index] += 1
    return grown


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_more_triplets_go_to_the_matrices_of_the_highest_mean_score(data: st.DataObject) -> None:
    ranks = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    now = [data.draw(st.integers(1, rank)) for rank in ranks]
    budget = data.draw(st.integers(sum(now), sum(ranks)))
    # Sums of small whole numbers are exact, so that means tie where they should.
    scores = [float(data.draw(st.integers(0, 3))) for _ in range(sum(ranks))]
    rule = Growth(ranks, torch.device("cpu"))
    survivors = torch.cat([torch.arange(rank) < own for rank, own in zip(ranks, now, strict=True)])
    order = rule.order(torch.tensor(scores, dtype=torch.float64), survivors)
    chosen = torch.zeros(sum(ranks), dtype=torch.bool)
    chosen[order.indices[:budget]] = True
    expected = slow_growth(ranks, now, scores, budget)
    assert [int(part.sum()) for part in chosen.split(ranks)] == expected
    # The first triplets of a matrix, and never one less than before.
    for part, count in zip(chosen.split(ranks), expected, strict=True):
        assert part[:count].all()
    assert chosen[survivors].all()
    reserved = [
        int(part.nonzero()[0]) if part.any() else None
        for part in rule.reserved(survivors).split(ranks)
    ]
    assert reserved == [own if own < rank else None for own, rank in zip(now, ranks, strict=True)]

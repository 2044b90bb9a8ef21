"""Other scores, plain LoRA's doublets and growth: masked to zero, resumed, and at what cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.loralib.conftest import Plain, model_of, train
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import loralib

VARIANTS: list[dict[str, str]] = [
    {"importance_score": "sensitivity"},
    {"importance_score": "magnitude"},
    {"lora_type": "frd"},
    {"lora_type": "frd", "importance_score": "sensitivity"},
    {"lora_type": "frd", "importance_score": "magnitude"},
    {"allocation": "grow"},
    {"allocation": "grow", "importance_score": "sensitivity"},
    {"allocation": "grow", "importance_score": "magnitude"},
    {"allocation": "exchange"},
    {"allocation": "uniform"},
    {"allocation": "random"},
    {"allocation": "frozen"},
    {"lora_type": "frd", "allocation": "frozen", "importance_score": "magnitude"},
]


@pytest.mark.parametrize("score", loralib.SCORES)
def test_pruned_doublets_are_zero_and_the_budget_is_kept(
    score: str, make_allocator: Callable[..., Any]
) -> None:
    model = Plain()
    allocator = make_allocator(model, target_rank=1, lora_type="frd", importance_score=score)
    losses = train(model, allocator, range(20))
    pattern = allocator.get_rank_pattern()
    assert sum(pattern.values()) == 3
    assert list(pattern) == [f"layers.{i}.lora_E" for i in range(3)]
    for layer, kept in zip(model.layers, allocator.survivors().values(), strict=True):
        assert torch.equal((layer.lora_A != 0).any(dim=1), kept)
        assert (layer.lora_B[:, ~kept] == 0).all()
        assert torch.linalg.matrix_rank(layer.delta_weight()) <= int(kept.sum())
    assert losses[-1] < losses[0]


def test_adamw_can_bring_a_doublet_back_and_the_final_phase_ends_it(
    make_allocator: Callable[..., Any],
) -> None:
    model = Plain()
    allocator = make_allocator(model, lora_type="frd", mask_interval=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    back = 0
    for step in range(20):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).double()
        nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        allocator.update_and_mask(model, step)
        optimizer.zero_grad()
        for layer, kept in zip(model.layers, allocator.survivors().values(), strict=True):
            back += int((layer.lora_A[~kept] != 0).any()) if step % 4 else 0
    assert back > 0
    alive = sum(int((layer.lora_A != 0).any(dim=1).sum()) for layer in model.layers)
    assert alive == 3


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("stop", [1, 7, 12, 17])
def test_resuming_a_variant_from_its_state_is_bit_equal(
    variant: dict[str, str],
    stop: int,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    settings = {"target_rank": 2, **variant}
    whole, first, second = (model_of(variant, make_stack) for _ in range(3))
    reference = make_allocator(whole, **settings)
    train(whole, reference, range(20))
    allocator = make_allocator(first, **settings)
    train(first, allocator, range(stop))
    second.load_state_dict(first.state_dict())
    resumed = make_allocator(second, **settings)
    resumed.load_state_dict(allocator.state_dict())
    train(second, resumed, range(stop, 20))
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    assert resumed.get_rank_pattern() == reference.get_rank_pattern()
    assert resumed.mask_events == reference.mask_events
    assert torch.equal(resumed.importance.scores(), reference.importance.scores())


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({}, {"importance_score": "sensitivity"}, "score uncertainty there, sensitivity here"),
        ({"importance_score": "magnitude"}, {}, "score magnitude there, uncertainty here"),
        ({}, {"allocation": "grow"}, "allocation prune there, grow here"),
        ({"allocation": "random"}, {"allocation": "frozen"}, "random there, frozen here"),
        (
            {"importance_score": "sensitivity"},
            {"importance_score": "magnitude"},
            "sensitivity there, magnitude here",
        ),
    ],
)
def test_the_state_of_another_variant_is_refused(
    there: dict[str, str],
    here: dict[str, str],
    message: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    model = make_stack()
    state = make_allocator(model, **there).state_dict()
    with pytest.raises(ValueError, match=message):
        make_allocator(model, **here).load_state_dict(state)


def test_a_state_of_before_the_variants_is_that_of_the_published_method(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    state = make_allocator(model).state_dict()
    for name in ("lora_type", "score", "allocation"):
        del state[name]
    make_allocator(model).load_state_dict(state)
    with pytest.raises(ValueError, match="score uncertainty there, magnitude here"):
        make_allocator(model, importance_score="magnitude").load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"importance_score": "salience"}, "importance_score is 'salience'; choose uncertainty"),
        ({"allocation": "shrink"}, "allocation is 'shrink'; choose prune, grow, exch"),
        ({"lora_type": "dora"}, "lora_type must be svd or frd, got 'dora'"),
        ({"lora_type": "frd"}, r"needs at least one loralib\.Linear with r > 0"),
        ({"lora_type": "frd", "allocation": "grow"}, "doublets of plain LoRA cannot grow"),
        ({"lora_type": "frd", "allocation": "exchange"}, "doublets of plain LoRA cannot grow"),
    ],
)
def test_an_unknown_variant_is_an_error_that_shows_it(
    change: dict[str, Any],
    message: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    with pytest.raises(ValueError, match=message):
        make_allocator(make_stack(), **change)


class Counter(TorchDispatchMode):  # type: ignore[misc]
    operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", [{}, *VARIANTS], ids=str)
def test_an_allocation_takes_as_many_operations_for_many_layers_as_for_few(
    variant: dict[str, str],
) -> None:
    kind = loralib.Linear if variant.get("lora_type") == "frd" else loralib.SVDLinear
    counts = []
    for depth in (3, 30):
        shapes = [(6, 6) if index % 2 else (6, 9) for index in range(depth)]
        model = nn.ModuleList(kind(a, b, r=2) for a, b in shapes)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        # Half the layers' room is left when the budget has grown by one step.
        target = {"target_total_rank": depth + 2} if "allocation" in variant else {}
        allocator = loralib.RankAllocator(
            model, 2, 1, 1, 2, 1, 0.85, 0.85, total_step=10, **target, **variant
        )
        with Counter() as counter:
            _, threshold = allocator.update_and_mask(model, 5)
        assert threshold is not None
        counts.append(counter.operations)
    assert counts[0] == counts[1] <= 150

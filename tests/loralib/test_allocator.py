"""Scores, selection, state and faults of the allocator, against a slow version in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import loralib

FACTORS = ("lora_A", "lora_E", "lora_B")


def slow_scores(
    history: list[dict[str, tuple[torch.Tensor, torch.Tensor]]],
    layers: dict[str, loralib.SVDLinear],
    beta1: float,
    beta2: float,
) -> list[float]:
    """Eq. 9-13, entry by entry, from the recorded (weight, gradient) of every step."""
    importance: dict[str, torch.Tensor] = {}
    for name in history[0]:
        average = torch.zeros_like(history[0][name][0])
        uncertainty = torch.zeros_like(average)
        for step in history:
            weight, gradient = step[name]
            sensitivity = (weight * gradient).abs()
            average = beta1 * average + (1 - beta1) * sensitivity
            uncertainty = beta2 * uncertainty + (1 - beta2) * (sensitivity - average).abs()
        importance[name] = average * uncertainty
    scores = []
    for path, layer in layers.items():
        for i in range(layer.r):
            row = importance[f"{path}.lora_A"][i]
            column = importance[f"{path}.lora_B"][:, i]
            value = importance[f"{path}.lora_E"][i, 0]
            scores.append((value + row.sum() / len(row) + column.sum() / len(column)).item())
    return scores


def test_scores_equal_the_slow_form(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, beta1=0.7, beta2=0.9, init_warmup=12)
    layers = {f"layers.{i}": layer for i, layer in enumerate(model.layers)}
    generator = torch.Generator().manual_seed(3)
    history = []
    for step in range(6):
        record = {}
        for path, layer in layers.items():
            for factor in FACTORS:
                p = getattr(layer, factor)
                with torch.no_grad():
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                record[f"{path}.{factor}"] = (p.detach().clone(), p.grad.clone())
        history.append(record)
        allocator.update_and_mask(model, step)
    expected = torch.tensor(slow_scores(history, layers, 0.7, 0.9), dtype=torch.float64)
    torch.testing.assert_close(allocator.importance.scores(), expected, rtol=1e-12, atol=0)


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


def test_a_budget_of_all_triplets_masks_nothing(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], run: Callable[..., Any]
) -> None:
    model = make_stack()
    results = run(model, make_allocator(model, target_rank=3), range(20))
    assert all(threshold is None for _, threshold in results)
    assert all((layer.lora_E != 0).all() for layer in model.layers)


@pytest.mark.parametrize("fault", ["missing", "nan", "inf"])
def test_a_faulty_gradient_leaves_importance_untouched_and_is_counted(
    fault: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
    run: Callable[..., Any],
) -> None:
    model = make_stack()
    allocator = make_allocator(model, init_warmup=10)
    run(model, allocator, range(4))
    before = [
        t.clone() for group in allocator.importance.state_dict().values() for t in group.values()
    ]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    last = model.layers[2].lora_B
    if fault == "missing":
        last.grad = None
    else:
        last.grad[0, 0] = float(fault)
    allocator.update_and_mask(model, 4)
    after = [t for group in allocator.importance.state_dict().values() for t in group.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert allocator.skipped_steps == 1
    model.zero_grad()
    run(model, allocator, range(5, 20))
    assert allocator.skipped_steps == 1
    assert all(p.isfinite().all() for p in model.parameters())
    assert sum(allocator.get_rank_pattern().values()) == 3


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
        ({"target_rank": 4}, "target_rank 4 is above lora_r 3"),
        ({"beta1": 1.0}, r"beta1 must lie between 0 and 1.*got 1\.0"),
        ({"beta2": 0.0}, r"beta2 must lie between 0 and 1.*got 0\.0"),
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


@pytest.mark.parametrize("fault", [float("inf"), float("nan")])
def test_a_fault_in_the_head_alone_is_no_step_for_importance(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], fault: float
) -> None:
    """A gradient scaler skips such a step; clipping makes zeros of the layers' own gradients."""
    model = make_stack()
    model.head.requires_grad_(True)
    allocator = make_allocator(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    allocator.update_and_mask(model, 0)
    before = allocator.importance.scores().clone()
    model.head.weight.grad[0, 0] = fault
    allocator.update_and_mask(model, 1)
    assert torch.equal(allocator.importance.scores(), before)
    assert (allocator.skipped_steps, allocator.updates_due) == (1, 2)
    model.head.weight.grad = None
    allocator.update_and_mask(model, 2)
    assert not torch.equal(allocator.importance.scores(), before)


def test_half_precision_is_scored_in_float32(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any], run: Callable[..., Any]
) -> None:
    model = make_stack(dtype=torch.bfloat16)
    allocator = make_allocator(model)
    run(model, allocator, range(20))
    assert allocator.importance.scores().dtype == torch.float32
    assert sum(allocator.get_rank_pattern().values()) == 3


def test_a_masked_step_takes_as_many_operations_for_many_layers_as_for_few() -> None:
    class Counter(TorchDispatchMode):  # type: ignore[misc]
        operations = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.operations += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for depth in (3, 30):
        layers = [
            loralib.SVDLinear(6, 6, r=2) if index % 2 else loralib.SVDLinear(6, 9, r=2)
            for index in range(depth)
        ]
        model = torch.nn.ModuleList(layers)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        allocator = loralib.RankAllocator(model, 2, 1, 1, 2, 1, 0.85, 0.85, total_step=10)
        with Counter() as counter:
            _, threshold = allocator.update_and_mask(model, 3)
        assert threshold is not None
        counts.append(counter.operations)
    assert counts[0] == counts[1] <= 150

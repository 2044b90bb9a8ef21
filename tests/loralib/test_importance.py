"""Equations 9 to 13 of AdaLoRA: against numbers by hand and a slow version in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.loralib.conftest import model_of, train
from torch import nn

import loralib

FACTORS = ("lora_A", "lora_E", "lora_B")


def test_one_triplet_is_scored_by_the_five_equations() -> None:
    """In a matrix of one entry, whose three factors are numbers; both betas are a half."""
    model = nn.Sequential(loralib.SVDLinear(1, 1, r=1, merge_weights=False)).double()
    allocator = loralib.RankAllocator(model, 1, 1, 5, 2, 1, beta1=0.5, beta2=0.5, total_step=10)
    for step, (weights, gradients) in enumerate(
        [((2.0, -3.0, 5.0), (0.1, 0.2, -0.3)), ((1.0, 4.0, -2.0), (-0.5, 0.25, 0.5))]
    ):
        for name, weight, gradient in zip(FACTORS, weights, gradients, strict=True):
            parameter = getattr(model[0], name)
            parameter.data.fill_(weight)
            parameter.grad = torch.full_like(parameter, gradient)
        allocator.update_and_mask(model, step)
    # Eq. 10, of A, E and B: 0.2, 0.6, 1.5, and then 0.5, 1.0, 1.0.
    averages = (0.3, 0.65, 0.875)  # eq. 11
    uncertainties = (0.125, 0.25, 0.25)  # eq. 12
    importance = [a * u for a, u in zip(averages, uncertainties, strict=True)]  # eq. 13
    # Eq. 9: a vector counts by the mean of its entries, of which there is one here.
    assert allocator.importance.scores().tolist() == pytest.approx([sum(importance)], rel=1e-14)


def recorded(
    model: Any, allocator: loralib.RankAllocator, steps: int = 6
) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Drive the allocator with random weights and gradients, and note them."""
    generator = torch.Generator().manual_seed(3)
    history = []
    for step in range(steps):
        record = {}
        for name, p in model.named_parameters():
            if "lora_" in name:
                with torch.no_grad():
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                record[name] = (p.detach().clone(), p.grad.clone())
        history.append(record)
        allocator.update_and_mask(model, step)
    return history


def averages(
    history: list[dict[str, tuple[torch.Tensor, torch.Tensor]]], beta1: float, beta2: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Eq. 10-12 by hand."""
    sensitivity = {name: torch.zeros_like(weight) for name, (weight, _) in history[0].items()}
    uncertainty = {name: torch.zeros_like(weight) for name, (weight, _) in history[0].items()}
    for record in history:
        for name, (weight, gradient) in record.items():
            now = (weight * gradient).abs()
            sensitivity[name] = beta1 * sensitivity[name] + (1 - beta1) * now
            apart = (now - sensitivity[name]).abs()
            uncertainty[name] = beta2 * uncertainty[name] + (1 - beta2) * apart
    return sensitivity, uncertainty


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"importance_score": "sensitivity"},
        {"lora_type": "frd"},
        {"lora_type": "frd", "importance_score": "sensitivity"},
    ],
    ids=str,
)
def test_scores_equal_the_slow_form(
    variant: dict[str, str], make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = model_of(variant, make_stack)
    allocator = make_allocator(model, beta1=0.7, beta2=0.9, init_warmup=12, **variant)
    sensitivity, uncertainty = averages(recorded(model, allocator), 0.7, 0.9)
    expected = []
    for index, layer in enumerate(model.layers):
        entries = {
            factor: sensitivity[name]
            * (1 if variant.get("importance_score") == "sensitivity" else uncertainty[name])
            for factor in FACTORS
            if (name := f"layers.{index}.{factor}") in sensitivity
        }
        for i in range(layer.r):
            vectors = entries["lora_A"][i].mean() + entries["lora_B"][:, i].mean()
            value = entries["lora_E"][i, 0] if "lora_E" in entries else 0.0
            expected.append(float(value + vectors))
    got = allocator.importance.scores()
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=1e-12, atol=0)


@pytest.mark.parametrize("lora_type", ["svd", "frd"])
def test_magnitude_is_that_of_the_singular_value(
    lora_type: str, make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = model_of({"lora_type": lora_type}, make_stack)
    allocator = make_allocator(
        model, init_warmup=12, lora_type=lora_type, importance_score="magnitude"
    )
    recorded(model, allocator, steps=2)
    expected = []
    for layer in model.layers:
        for i in range(layer.r):
            if lora_type == "svd":
                expected.append(layer.lora_E[i, 0].abs().item())
            else:
                product = torch.outer(layer.lora_B[:, i], layer.lora_A[i])
                expected.append(torch.linalg.matrix_norm(product, ord=2).item())
    got = allocator.importance.scores()
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=1e-12, atol=0)


def test_magnitude_passes_over_values_that_are_not_finite(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, importance_score="magnitude")
    train(model, allocator, range(2))
    before = allocator.importance.scores()
    with torch.no_grad():
        model.layers[1].lora_E[0] = float("nan")
    allocator.update_and_mask(model, 2)
    assert torch.equal(allocator.importance.scores(), before)
    assert allocator.skipped_steps == 1


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

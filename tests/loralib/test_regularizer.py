"""The penalty against its definition, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import loralib


def test_the_penalty_is_the_mean_distance_from_orthonormality(
    make_stack: Callable[..., Any],
) -> None:
    model = make_stack()
    distances = []
    for layer in model.layers:
        for gram in (layer.lora_A @ layer.lora_A.T, layer.lora_B.T @ layer.lora_B):
            total = 0.0
            for i in range(3):
                for j in range(3):
                    total = total + (gram[i, j] - (1.0 if i == j else 0.0)) ** 2
            distances.append(total**0.5)
    expected = 0.3 * sum(distances) / len(distances)
    got = loralib.compute_orth_regu(model, regu_weight=0.3)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for one, two in zip(
        torch.autograd.grad(got, parameters, allow_unused=True),
        torch.autograd.grad(expected, parameters, allow_unused=True),
        strict=True,
    ):
        if two is None:
            assert one is None
        else:
            torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_penalty_is_taken_in_full_precision_under_autocast(dtype: torch.dtype) -> None:
    """Near orthonormality a product in bfloat16 would leave nothing but its own rounding."""
    model = nn.ModuleList([loralib.SVDLinear(16, 16, r=4), loralib.Linear(16, 16, r=4)])
    with torch.no_grad():
        model[0].lora_A.copy_(torch.linalg.qr(torch.randn(16, 4))[0].T * 1.0001)
        model[0].lora_B.copy_(torch.linalg.qr(torch.randn(16, 4))[0] * 1.0001)
        model[1].lora_B.normal_()
    for penalty in (loralib.compute_orth_regu, loralib.compute_frd_orth_regu):
        expected = penalty(model)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(penalty(model), expected)


def test_orthonormal_factors_cost_nothing() -> None:
    layer = loralib.SVDLinear(6, 8, r=3).double()
    with torch.no_grad():
        layer.lora_A.copy_(torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64))[0].T)
        layer.lora_B.copy_(torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64))[0])
    penalty = loralib.compute_orth_regu(layer)
    assert penalty.item() < 1e-14
    penalty.backward()
    assert layer.lora_A.grad is not None
    assert layer.lora_A.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_a_norm_of_zero_the_gradient_is_zero(scale: float, dtype: torch.dtype) -> None:
    """Also where a gradient scaler multiplies the loss."""
    layer = loralib.SVDLinear(6, 8, r=3, dtype=dtype)
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(3, 6))
        layer.lora_B.copy_(torch.eye(8, 3))
    (scale * loralib.compute_orth_regu(layer)).backward()
    assert layer.lora_A.grad is not None
    assert layer.lora_B.grad is not None
    assert layer.lora_A.grad.count_nonzero() == layer.lora_B.grad.count_nonzero() == 0


@pytest.mark.parametrize("off", [1e-38, 1e-30, 1e-20, 1e-10])
def test_near_a_norm_of_zero_the_gradient_is_finite(off: float) -> None:
    layer = loralib.SVDLinear(6, 8, r=3)
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(3, 6))
        layer.lora_A[0, 1] = off
        layer.lora_B.copy_(torch.eye(8, 3))
    (2.0**24 * loralib.compute_orth_regu(layer)).backward()
    assert layer.lora_A.grad is not None
    assert layer.lora_A.grad.isfinite().all()


def test_a_factor_of_zeros_has_a_finite_penalty_gradient_under_a_scale() -> None:
    layer = loralib.Linear(6, 8, r=3)
    (2.0**24 * loralib.compute_frd_orth_regu(layer)).backward()
    for factor in (layer.lora_A, layer.lora_B):
        assert factor.grad is not None
        assert factor.grad.isfinite().all()


def test_depth_costs_no_operations_but_autograds_own_sums() -> None:
    class Counter(TorchDispatchMode):  # type: ignore[misc]
        operations = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            # A parameter that is used twice has its two gradients added, one addition each.
            self.operations += function is not torch.ops.aten.add_.Tensor
            return function(*args, **(kwargs or {}))

    counts = []
    for depth in (4, 40):
        model = nn.ModuleList(loralib.SVDLinear(6, 6 + 3 * (i % 2), r=2) for i in range(depth))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with Counter() as counter:
            loralib.compute_orth_regu(model).backward()
        counts.append(counter.operations)
    assert counts[0] == counts[1] <= 60


def test_layers_of_several_ranks_and_shapes_are_averaged_alike() -> None:
    torch.manual_seed(0)
    layers = [loralib.SVDLinear(4, 5, r=1), loralib.SVDLinear(6, 3, r=2)]
    single = [loralib.compute_orth_regu(layer) for layer in layers]
    together = loralib.compute_orth_regu(nn.Sequential(*layers))
    torch.testing.assert_close(together, (single[0] + single[1]) / 2)


@pytest.mark.parametrize("rank", [1, 3])
def test_plain_loras_penalty_is_the_mean_absolute_cosine(rank: int) -> None:
    torch.manual_seed(0)
    layer = loralib.Linear(6, 8, r=rank).double()
    nn.init.normal_(layer.lora_B)
    values = []
    for rows in (layer.lora_A, layer.lora_B.T):
        cosines = [
            torch.cosine_similarity(rows[i], rows[j], dim=0).abs()
            for i in range(rank)
            for j in range(rank)
            if i != j
        ]
        values.append(sum(cosines) / len(cosines) if cosines else torch.zeros(()).double())
    expected = 0.5 * (values[0] + values[1]) / 2
    got = loralib.compute_frd_orth_regu(layer, regu_weight=0.5)
    torch.testing.assert_close(got.double(), torch.as_tensor(expected).double(), rtol=1e-9, atol=0)


def test_a_fresh_lora_has_a_finite_penalty_and_gradient() -> None:
    layer = loralib.Linear(6, 8, r=3)
    loralib.compute_frd_orth_regu(layer).backward()
    assert layer.lora_A.grad is not None
    assert layer.lora_B.grad is not None
    assert layer.lora_A.grad.isfinite().all()
    assert layer.lora_B.grad.isfinite().all()
    with pytest.raises(ValueError, match="needs at least one"):
        loralib.compute_frd_orth_regu(nn.Linear(2, 2))

"""A training step under CUDA's autocast policy passes, and agrees with the one in float32."""

from __future__ import annotations

import functools
from dataclasses import replace
from itertools import product

import pytest
import torch
from tests.accelerators.cuda_autocast import cuda_autocast
from tests.accelerators.steps import METHODS, Case, batch, build, training_step
from torch import Tensor

WAYS = [("deberta", True), ("deberta", False), ("bert", True), ("bert", False)]
DTYPES = [torch.bfloat16, torch.float16, None]
EVERY = [
    Case(method, encoder=encoder, unpadded=unpadded, low=low)
    for method, (encoder, unpadded), low in product(METHODS, WAYS, DTYPES)
] + [Case(method, encoder="mpnet", low=low) for method, low in product(("svd", "full"), DTYPES)]
EXTRAS = [
    replace(Case(method, encoder=encoder, unpadded=unpadded, low=low), **extra)
    for extra in (
        {"accumulation": 2},
        {"checkpointing": True},
        {"base_dtype": torch.bfloat16},
        {"smoothing": 0.1},
        {"consistency": 1.0},
    )
    for method in ("svd", "dora")
    for encoder, unpadded in WAYS
    for low in (torch.bfloat16, torch.float16)
]


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].double().flatten() for name in sorted(gradients)])


def _step(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    model, adaptation = build(case)
    return training_step(model, adaptation, batch(), case)


@functools.cache
def _exact_step(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """The step in float32, made once for all the dtypes that are held against it."""
    assert case.low is None
    assert case.base_dtype == torch.float32
    return _step(case)


def test_the_policy_is_cudas_within_and_the_cpus_without() -> None:
    x = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with cuda_autocast():
            within = (x @ x.T).softmax(dim=-1)
        without = (x @ x.T).softmax(dim=-1)
    assert (within.dtype, without.dtype) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("case", [*EVERY, *EXTRAS], ids=str)
def test_a_training_step_agrees_with_float32(case: Case) -> None:
    with cuda_autocast():
        loss, gradients = _step(case)
    exact_loss, exact = _exact_step(replace(case, low=None, base_dtype=torch.float32))
    assert set(gradients) == set(exact)
    # Rounding of each of some thirty products in a row, and of the base's weights: their errors
    # add like a random walk, so a few times the unit of the coarser dtype.
    coarse = torch.bfloat16 if case.base_dtype == torch.bfloat16 else case.low
    unit = torch.finfo(coarse or torch.float32).eps
    assert float(loss) == pytest.approx(float(exact_loss), rel=8 * unit)
    found, expected = _flat(gradients), _flat(exact)
    assert float((found - expected).norm() / expected.norm()) < 8 * unit

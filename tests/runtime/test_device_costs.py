"""Launches and reads of values are counted as a device would meet them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from adalora.runtime.device_costs import DeviceCosts


@pytest.mark.parametrize(
    ("work", "launches"),
    [
        (lambda x: x + x, 1),
        (lambda x: x.view(-1).unsqueeze(0).transpose(0, 1)[2:], 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x.add_(1).mul_(2), 2),
        (lambda x: torch._foreach_add([x] * 40, 1.0), 1),
        (lambda x: torch._foreach_add([x] * 100, 1.0), 3),
        (lambda x: x.float(), 0),
    ],
)
def test_what_computes_is_launched_and_views_are_not(
    work: Callable[[Any], Any], launches: int
) -> None:
    x = torch.ones(4, 4)
    with DeviceCosts() as costs:
        work(x)
    assert costs.launches.total() == launches
    assert costs.reads.total() == 0


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.unique(),
        lambda x: torch.equal(x, x + 1),
    ],
)
def test_a_value_that_the_host_needs_is_a_read(work: Callable[[Any], Any]) -> None:
    with DeviceCosts() as costs:
        work(torch.ones(4))
    assert costs.reads.total() == 1

"""A step on a device that does not exist: no mixed devices, no wrong dtype, no value read."""

from __future__ import annotations

from typing import Any

import pytest
from tests.accelerators.fake_device import CASES, COUNTED
from tests.program import lines_of_program

#: Made at the first allocation of a run, from what the host knows.
ONCE_PER_RUN = {"training/allocation_history.py"}


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    """What came of each case; registering a device changes a process for good, so in another."""
    lines = lines_of_program("tests.accelerators.fake_device")
    return {line["case"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_step_meets_one_device_and_waits_for_nothing(
    name: str, steps: dict[str, dict[str, Any]]
) -> None:
    assert steps[name]["passed"], steps[name]["why"]
    moved = {"allocator.py", "importance.py"} if "late" in name else set()
    assert {place.split(":")[0] for place in steps[name]["copies"]} <= ONCE_PER_RUN | moved


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTED)
def test_a_step_starts_few_kernels_whatever_the_lengths(
    name: str, steps: dict[str, dict[str, Any]]
) -> None:
    """By a model of CUDA, without Triton; 3,535 for texts like MNLI's when this was written."""
    assert steps[name]["passed"], steps[name]["why"]
    assert not steps[name]["copies"]
    assert steps[name]["launches"] <= 3600

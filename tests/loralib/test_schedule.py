"""The budget against the published formula, and its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loralib import BudgetSchedule


def slow_budget(total: int, target: int, start: int, end: int, steps: int, step: int) -> int:
    """Appendix A with the sign mended, written out."""
    if step <= start:
        return total
    if step > steps - end:
        return target
    progress = (step - start) / (steps - end - start)
    return int(target + (total - target) * (1 - progress) ** 3)


@st.composite
def schedules(draw: st.DrawFn) -> BudgetSchedule:
    total = draw(st.integers(1, 1000))
    start, end = draw(st.integers(0, 200)), draw(st.integers(0, 200))
    return BudgetSchedule(
        total_rank=total,
        target_total_rank=draw(st.integers(0, total)),
        init_warmup=start,
        final_warmup=end,
        mask_interval=draw(st.integers(1, 50)),
        total_step=start + end + draw(st.integers(1, 300)),
    )


@given(schedules())
def test_the_budget_falls_from_the_start_to_the_target_by_the_formula(s: BudgetSchedule) -> None:
    budgets = [s.budget(step) for step in range(s.total_step)]
    assert budgets[0] == s.total_rank
    assert all(s.target_total_rank <= b <= s.total_rank for b in budgets)
    assert budgets == sorted(budgets, reverse=True)
    expected = [
        slow_budget(
            s.total_rank, s.target_total_rank, s.init_warmup, s.final_warmup, s.total_step, step
        )
        for step in range(s.total_step)
    ]
    assert budgets == expected


@given(schedules())
def test_masks_come_at_the_interval_and_at_every_step_of_the_last_phase(s: BudgetSchedule) -> None:
    for step in range(s.total_step):
        if step <= s.init_warmup:
            assert not s.masks(step)
        elif step > s.total_step - s.final_warmup:
            assert s.masks(step)
        else:
            assert s.masks(step) == (step % s.mask_interval == 0)


GOOD = {
    "total_rank": 24,
    "target_total_rank": 12,
    "init_warmup": 10,
    "final_warmup": 20,
    "mask_interval": 5,
    "total_step": 31,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_step": 30}, "init_warmup 10 .* final_warmup 20 .* total_step is 30"),
        ({"target_total_rank": 25}, "25 triplets is above the 24"),
        ({"target_total_rank": -1}, "target_total_rank must be 0 or more, got -1"),
        ({"init_warmup": -1}, "init_warmup must be 0 or more, got -1"),
        ({"final_warmup": -1}, "final_warmup must be 0 or more, got -1"),
        ({"mask_interval": 0}, "mask_interval must be 1 or more, got 0"),
    ],
)
def test_a_number_out_of_its_range_is_named(change: dict[str, int], message: str) -> None:
    BudgetSchedule(**GOOD)
    with pytest.raises(ValueError, match=message):
        BudgetSchedule(**{**GOOD, **change})

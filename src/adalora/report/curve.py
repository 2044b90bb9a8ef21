"""The budget schedule as a small curve of block characters, for a terminal of any kind."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Schedule", "budget_curve"]

_BLOCKS = " ▁▂▃▄▅▆▇█"


class Schedule(Protocol):
    """What the curve needs of ``loralib.schedule.BudgetSchedule``."""

    @property
    def total_rank(self) -> int:
        """Triplets at the start, over the whole model."""

    @property
    def target_total_rank(self) -> int:
        """Triplets at the end, over the whole model."""

    @property
    def init_warmup(self) -> int:
        """Steps before the budget begins to change."""

    @property
    def final_warmup(self) -> int:
        """Steps at the end with the target budget."""

    @property
    def mask_interval(self) -> int:
        """Steps between two allocations while the budget changes."""

    @property
    def total_step(self) -> int:
        """Optimizer steps of the run."""

    def budget(self, step: int) -> int:
        """Return the triplets allowed at ``step``."""


def budget_curve(
    schedule: Schedule, width: int = 60, height: int = 6, ascii_only: bool = False
) -> str:
    """Draw the budget in triplets (upwards from 0) over the steps (to the right).

    Args:
        schedule: the budget schedule of the run.
        width: columns of the drawing itself; the axis labels come on top of it.
        height: lines of the drawing itself.
        ascii_only: draw with ``#`` where the output cannot show block characters.
    Raises:
        ValueError: if width is below 10 or height below 2.
    """
    if width < 10 or height < 2:
        raise ValueError(f"a curve of {width} x {height} is too small: 10 x 2 is the least")
    last = max(schedule.total_step - 1, 0)
    budgets = [schedule.budget(round(column * last / (width - 1))) for column in range(width)]
    start, target = schedule.total_rank, schedule.target_total_rank
    top = max(start, target, 1)
    label_width = len(str(top))
    eighths = [round(budget * height * 8 / top) for budget in budgets]
    # The lower end of the curve gets its label on the line that its columns end on.
    lower = min(start, target)
    lower_line = max(-(-round(lower * height * 8 / top) // 8) - 1, 0)
    lines = []
    for line in range(height - 1, -1, -1):
        if line == height - 1:
            label = str(max(start, target))
        else:
            label = str(lower) if line == lower_line else ""
        cells = (min(max(level - 8 * line, 0), 8) for level in eighths)
        drawn = "".join(
            ("#" if cell >= 4 else " ") if ascii_only else _BLOCKS[cell] for cell in cells
        )
        lines.append(f"{label:>{label_width}} {drawn}".rstrip())
    end = f"step {schedule.total_step}"
    axis = "step 0".ljust(width - len(end)) + end
    return "\n".join([*lines, " " * (label_width + 1) + axis])

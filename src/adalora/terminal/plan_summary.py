"""What ``adalora plan`` shows: what a run would do, before a step of it is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from loralib.schedule import BudgetSchedule


@dataclass(frozen=True)
class PlanSummary:
    """The facts of a planned run.

    Attributes:
        title: model and task in a few words.
        examples: examples per split, in the order to show.
        steps: optimizer steps of the run.
        schedule: the budget schedule; None for a run without AdaLoRA, or if it is not valid.
        parameters_start: trained adapter parameters as initialised.
        parameters_end: adapter parameters that the target budget keeps (expected, as the matrices
            that will keep them are not known yet).
        parameters_head: trained parameters of pooler and classifier.
        parameters_total: parameters of the whole model.
        problems: what is wrong, one sentence each.
    """

    title: str
    examples: dict[str, int]
    steps: int
    schedule: BudgetSchedule | None = None
    parameters_start: int = 0
    parameters_end: int | None = None
    parameters_head: int = 0
    parameters_total: int | None = None
    problems: Sequence[str] = field(default_factory=tuple)


class _Curve:
    """The curve in the width and the characters that the console has."""

    def __init__(self, schedule: BudgetSchedule) -> None:
        self.schedule = schedule

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(min(options.max_width - 12, 60), 10)
        ascii_only = not options.encoding.lower().startswith("utf")
        yield Text(budget_curve(self.schedule, width, ascii_only=ascii_only), no_wrap=True)


def facts_table(rows: Sequence[tuple[str, str]]) -> Table:
    """Return two columns without lines: a name and what is known of it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    return table


def _phases(schedule: BudgetSchedule) -> str:
    end = schedule.total_step - schedule.final_warmup
    whole, change, done = {
        "decay": ("all ", "falling", "pruned"),
        "growth": ("", "rising", "added"),
        "exchange": ("", "as many", "exchanged"),
    }[schedule.phase]
    return (
        f"{whole}{schedule.total_rank:,} triplets until step {schedule.init_warmup:,}, "
        f"{change} until step {end:,} ({done} every {schedule.mask_interval:,} steps), "
        f"then {schedule.target_total_rank:,} until step {schedule.total_step:,}"
    )


def plan_summary(plan: PlanSummary) -> Group:
    """Return the plan as something rich can print at any width."""
    rows = [
        ("examples", ", ".join(f"{count:,} {name}" for name, count in plan.examples.items())),
        ("steps", f"{plan.steps:,}"),
    ]
    if plan.schedule is not None:
        rows.append(("schedule", _phases(plan.schedule)))
    adapter = f"adapter {plan.parameters_start:,}"
    if plan.parameters_end is not None:
        adapter += f", about {plan.parameters_end:,} at the end"
    share = ""
    if plan.parameters_total:
        trained = plan.parameters_start + plan.parameters_head
        share = f"; trained {trained / plan.parameters_total:.2%} of {plan.parameters_total:,}"
    rows.append(("parameters", f"{adapter}; head {plan.parameters_head:,}{share}"))
    parts: list[RenderableType] = [Text(plan.title, style="bold"), facts_table(rows)]
    if plan.schedule is not None:
        parts += [Text("\nBudget in triplets", style="bold"), _Curve(plan.schedule)]
    if plan.problems:
        parts.append(Text("\nProblems", style="bold red"))
        parts += [Text(f"- {problem}") for problem in plan.problems]
    elif plan.schedule is not None:
        parts.append(Text("\nNo problems found in the schedule."))
    return Group(*parts)


_BLOCKS = " ▁▂▃▄▅▆▇█"


def budget_curve(
    schedule: BudgetSchedule, width: int = 60, height: int = 6, ascii_only: bool = False
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

"""The plan of a run, before a step of it is taken, and its closing summary: what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from adalora.results.words import duration, rank_grid
from adalora.shell import lines_of, short_path

if TYPE_CHECKING:
    from loralib.schedule import BudgetSchedule


@dataclass(frozen=True)
class PlanSummary:
    """The facts of a planned run."""

    title: str  #: model and task in a few words
    examples: dict[str, int]  #: examples per split, in the order to show
    steps: int  #: optimizer steps of the run
    #: the budget schedule; None for a run without AdaLoRA, or if it is not valid
    schedule: BudgetSchedule | None = None
    parameters_start: int = 0  #: trained adapter parameters as initialised
    #: adapter parameters that the target budget keeps (expected, as the matrices that will keep
    #: them are not known yet)
    parameters_end: int | None = None
    parameters_head: int = 0  #: trained parameters of pooler and classifier
    parameters_total: int | None = None  #: parameters of the whole model
    problems: Sequence[str] = field(default_factory=tuple)  #: what is wrong, one sentence each
    #: names and values of what was understood of the data and the start
    understood: Sequence[tuple[str, str]] = ()


@dataclass
class _Curve:
    """The curve in the width and the characters that the console has."""

    schedule: BudgetSchedule

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
        *plan.understood,
        ("examples", ", ".join(f"{count:,} {name}" for name, count in plan.examples.items())),
        ("steps", f"{plan.steps:,}"),
    ]
    if plan.schedule is not None:
        rows.append(("schedule", _phases(plan.schedule)))
    end = plan.parameters_end
    later = "" if end is None else f", about {end:,} at the end"
    rows.append(_parameters(plan, plan.parameters_start, later))
    parts: list[RenderableType] = [Text(plan.title, style="bold"), facts_table(rows)]
    if plan.schedule is not None:
        parts += [Text("\nBudget in triplets", style="bold"), _Curve(plan.schedule)]
    if plan.problems:
        parts.append(Text("\nProblems", style="bold red"))
        parts += [Text(f"- {problem}") for problem in plan.problems]
    elif plan.schedule is not None:
        parts.append(Text("\nNo problems found in the schedule."))
    return Group(*parts)


def _parameters(of: PlanSummary | RunSummary, start: int, later: str) -> tuple[str, str]:
    """The row on parameters: the adapter's, what becomes of them, the head's, and their share."""
    head, total = of.parameters_head, of.parameters_total
    share = f"; trained {(start + head) / total:.2%} of {total:,}" if total else ""
    return "parameters", f"adapter {start:,}{later}; head {head:,}{share}"


_BLOCKS = " ▁▂▃▄▅▆▇█"


def budget_curve(
    schedule: BudgetSchedule, width: int = 60, height: int = 6, ascii_only: bool = False
) -> str:
    """Draw the budget in triplets (upwards from 0) over the steps (to the right).

    It takes ``width`` columns and ``height`` lines, and its labels come on top of that;
    ``ascii_only`` draws with ``#`` where the output cannot show block characters.

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


@dataclass(frozen=True)
class Score:
    """One metric on one evaluation set."""

    evaluation_set: str  #: its name, such as "validation_matched"
    metric: str  #: the metric's name
    value: float  #: what the model reached, as the metric gives it (a fraction, not percent)
    #: what always answering the most frequent class gives; None where there is none
    majority: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """The facts of a finished run; zero or empty where a part did not happen."""

    title: str  #: model, task and method in a few words
    scores: Sequence[Score] = ()  #: in the order to show
    #: kept triplets of each matrix, keyed by the path of its ``lora_E``
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    init_rank: int = 0  #: triplets that each matrix began with
    mask_events: int = 0  #: how often the allocator chose triplets
    grown_from: int = 0  #: triplets at the start, where ranks grew or were exchanged, not pruned
    parameters_initial: int = 0  #: adapter parameters as initialised
    parameters_kept: int = 0  #: adapter parameters as finally kept
    parameters_head: int = 0  #: trained parameters of pooler and classifier
    parameters_total: int = 0  #: parameters of the whole model
    seconds: float | None = None  #: training time
    results: Path | None = None  #: folder that the results lie in
    next_commands: Sequence[tuple[str, str]] = ()  #: what to type next, each with the reason to
    warnings: Sequence[str] = ()  #: one sentence each


@dataclass
class _Command:
    """A shell command that survives copying from an output of any width."""

    command: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = lines_of(self.command, options.max_width - 2)
        yield Text("\n".join(f"  {line}" for line in lines), overflow="fold", no_wrap=False)


def rank_table(rank_pattern: Mapping[str, int], init_rank: int) -> Table:
    """The triplets kept of the ``init_rank`` that each matrix began with, with totals.

    Raises:
        ValueError: if the pattern is empty or holds a rank outside 0..init_rank.
    """
    if not rank_pattern:
        raise ValueError("the rank pattern is empty: no matrix was adapted")
    for path, rank in rank_pattern.items():
        if not 0 <= rank <= init_rank:
            raise ValueError(f"rank {rank} of {path} lies outside 0..{init_rank} (init_rank)")
    columns, cells = rank_grid(rank_pattern)
    total, full = sum(rank_pattern.values()), init_rank * len(rank_pattern)
    table = Table(
        title=f"Ranks kept of {init_rank} per matrix ({total} of {full} triplets)",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_footer=True,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("layer", "total", justify="right", overflow="fold")
    for column in columns:
        heading = column.replace(".", ".\n") if len(columns) > 3 else column
        column_total = sum(row.get(column, 0) for row in cells.values())
        # A name is no markup, whatever brackets it holds.
        table.add_column(Text(heading), str(column_total), justify="right", overflow="fold")
    table.add_column("all", str(total), justify="right")
    for row_name, ranks in cells.items():
        values = (str(ranks[column]) if column in ranks else "" for column in columns)
        table.add_row(Text(row_name), *values, str(sum(ranks.values())))
    return table


def run_summary(run: RunSummary) -> Group:
    """Return the summary as something rich can print at any width."""
    rows: list[tuple[str, str]] = []
    previous = None
    for score in run.scores:
        text = f"{score.metric} {score.value:.4f}"
        if score.majority is not None:
            text += f" (majority class {score.majority:.4f})"
        rows.append(("" if score.evaluation_set == previous else score.evaluation_set, text))
        previous = score.evaluation_set
    before, after = run.init_rank * len(run.rank_pattern), sum(run.rank_pattern.values())
    if run.rank_pattern and run.mask_events and run.grown_from:
        text = f"grown {run.grown_from:,} -> {after:,}" if run.grown_from < after else f"{after:,}"
        text += f" in {run.mask_events:,} allocations"
        rows.append(("triplets", text))
    elif run.rank_pattern and run.mask_events:
        text = f"pruned {before:,} -> {after:,} in {run.mask_events:,} mask events"
        rows.append(("triplets", text))
    elif run.rank_pattern:
        rows.append(("triplets", f"{after:,} of {before:,}, none pruned"))
    if run.parameters_total:
        kept = run.parameters_kept
        later = "" if kept == run.parameters_initial else f", {kept:,} kept"
        rows.append(_parameters(run, run.parameters_initial, later))
    if run.seconds is not None:
        rows.append(("time", duration(run.seconds)))
    if run.results is not None:
        rows.append(("results", short_path(run.results)))
    parts: list[RenderableType] = []
    if run.rank_pattern:
        parts.append(rank_table(run.rank_pattern, run.init_rank))
    parts += [Text(run.title, style="bold"), facts_table(rows)]
    if run.warnings:
        parts.append(Text("\nWarnings", style="bold yellow"))
        parts += [Text(f"- {warning}") for warning in run.warnings]
    if run.next_commands:
        parts.append(Text("\nNext", style="bold"))
        for reason, command in run.next_commands:
            parts += [Text(f"{reason}:"), _Command(command)]
    return Group(*parts)

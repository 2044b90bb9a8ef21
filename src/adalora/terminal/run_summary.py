"""The closing summary of a run: ranks kept, scores, cost, where it lies and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from adalora.results.places import arrange
from adalora.results.words import duration
from adalora.shell import lines_of, short_path
from adalora.terminal.plan_summary import facts_table


@dataclass(frozen=True)
class Score:
    """One metric on one evaluation set.

    Attributes:
        evaluation_set: its name, such as "validation_matched".
        metric: the metric's name.
        value: what the model reached, as the metric gives it (a fraction, not percent).
        majority: what always answering the most frequent class gives; None where there is none.
    """

    evaluation_set: str
    metric: str
    value: float
    majority: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """The facts of a finished run; zero or empty where a part did not happen.

    Attributes:
        title: model, task and method in a few words.
        scores: in the order to show.
        rank_pattern: kept triplets of each matrix, keyed by the path of its ``lora_E``.
        init_rank: triplets that each matrix began with.
        mask_events: how often the allocator chose triplets.
        grown_from: triplets at the start, where ranks grew or were exchanged, not pruned.
        parameters_initial: adapter parameters as initialised.
        parameters_kept: adapter parameters as finally kept.
        parameters_head: trained parameters of pooler and classifier.
        parameters_total: parameters of the whole model.
        seconds: training time.
        results: folder that the results lie in.
        next_commands: what to type next, each with the reason to.
        warnings: one sentence each.
    """

    title: str
    scores: Sequence[Score] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    init_rank: int = 0
    mask_events: int = 0
    grown_from: int = 0
    parameters_initial: int = 0
    parameters_kept: int = 0
    parameters_head: int = 0
    parameters_total: int = 0
    seconds: float | None = None
    results: Path | None = None
    next_commands: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()


class _Command:
    """A shell command that survives copying from an output of any width."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = lines_of(self.command, options.max_width - 2)
        yield Text("\n".join(f"  {line}" for line in lines), overflow="fold", no_wrap=False)


def rank_table(rank_pattern: Mapping[str, int], init_rank: int) -> Table:
    """Return the kept ranks as a table with totals.

    Args:
        rank_pattern: kept triplets of each matrix, keyed by the path of its ``lora_E``.
        init_rank: triplets that each matrix began with.
    Raises:
        ValueError: if the pattern is empty or holds a rank outside 0..init_rank.
    """
    if not rank_pattern:
        raise ValueError("the rank pattern is empty: no matrix was adapted")
    cells: dict[str, dict[str, int]] = {}
    places = arrange(rank_pattern)
    columns = list(dict.fromkeys(place.kind for place in places.values()))
    for path, rank in rank_pattern.items():
        if not 0 <= rank <= init_rank:
            raise ValueError(f"rank {rank} of {path} lies outside 0..{init_rank} (init_rank)")
        cells.setdefault(places[path].layer, {})[places[path].kind] = rank
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
        share = (run.parameters_initial + run.parameters_head) / run.parameters_total
        text = f"adapter {run.parameters_initial:,}"
        if run.parameters_kept != run.parameters_initial:
            text += f", {run.parameters_kept:,} kept"
        text += f"; head {run.parameters_head:,}; trained {share:.2%} of {run.parameters_total:,}"
        rows.append(("parameters", text))
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

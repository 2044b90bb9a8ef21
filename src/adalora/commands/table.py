"""``adalora table SWEEP|RUN...``: mean and deviation over seeds, task by task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora.commands.flags import (
    CommandParser,
    add_output_flags,
    check_output,
    open_output,
    positive,
)

if TYPE_CHECKING:
    from adalora.results.rows import Row
    from adalora.tables.grids import Grid

EXAMPLES = """  adalora table output/sweep
  adalora table output/sweep --against lora
  adalora table output/sweep -o docs/table.md
  adalora table output/rte-1 output/rte-2 --epoch last --format latex"""


def _parser() -> CommandParser:
    parser = CommandParser(
        "table", "Mean and standard deviation over seeds, task by task, of finished runs.", EXAMPLES
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="SWEEP|RUN",
        help="a sweep's folder, its results.jsonl, a run's folder, or a folder of runs",
    )
    parser.add_argument(
        "--epoch",
        choices=("last", "best", "both"),
        default="both",
        help="which epoch's scores; each has a table of its own (default: both)",
    )
    parser.add_argument(
        "--against",
        metavar="METHOD",
        help="a row: also differences to it, with intervals from three seeds on",
    )
    parser.add_argument(
        "--level", type=_level, default=0.95, help="of the intervals (default: 0.95)"
    )
    parser.add_argument(
        "--resamples",
        type=positive,
        default=2000,
        help="bootstrap draws of examples (default: 2000)",
    )
    parser.add_argument(
        "--bootstrap_seed", type=int, default=0, help="seed of the bootstrap (default: 0)"
    )
    parser.add_argument(
        "--paper",
        choices=("auto", "none", "table1", "ablation"),
        default="auto",
        help="the paper's rows: auto, table 1 next to runs on the paper's base model; table1, in "
        "any case; ablation, tables 4 and 5 as well; none",
    )
    parser.add_argument(
        "--format",
        choices=("terminal", "markdown", "latex", "csv"),
        help="default: that of --output's ending (.md, .tex, .csv), else terminal",
    )
    add_output_flags(parser, "FILE", "default: the standard output")
    return parser


def _level(word: str) -> float:
    level = float(word)
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"{word} is not between 0 and 1, such as 0.95")
    return level


def main(flags: Sequence[str]) -> int:
    """Show or write the tables."""
    arguments = _parser().parse_args(flags)
    if arguments.output is not None:
        check_output(arguments.output, overwrite=arguments.overwrite)
    from adalora.results.rows import rows_of
    from adalora.results.sources import read_sources

    sources = read_sources(arguments.paths)
    rows, notes = rows_of(sources.runs, sources.failures)
    by_base: dict[str, list[Row]] = {}
    for row in rows:
        if row.runs:
            by_base.setdefault(row.base_model, []).append(row)

    grids: list[Grid] = []
    records: list[dict[str, Any]] = []
    for of_base in by_base.values():
        found, lines = _of_base(of_base, arguments)
        grids += found
        records += lines
    if arguments.paper == "ablation":
        from adalora.tables.grids import paper_grid
        from adalora.tables.render import paper_records

        for name in ("table4", "table5"):
            grids.append(paper_grid(name))
            records += paper_records(name)
    failed = [{"table": "failed", "run": one.name, "error": one.error} for one in sources.failures]
    notes_on_failures = [f"Failed: {one['run']}: {one['error']}" for one in failed]
    _write(grids, records + failed, [*notes_on_failures, *notes, *sources.notes], arguments)
    return 0


def _of_base(
    rows: list[Row], arguments: argparse.Namespace
) -> tuple[list[Grid], list[dict[str, Any]]]:
    """The tables of one base model, as text and as records."""
    from adalora.results.scores import EPOCHS, score_table
    from adalora.tables.grids import (
        difference_grid,
        paper_base_model,
        paper_table,
        parameter_grid,
        score_grid,
    )
    from adalora.tables.render import difference_records, paper_records, score_records

    is_papers = rows[0].base_model in (paper_base_model(), Path(paper_base_model()).name)
    has_paper = arguments.paper == "table1" or (is_papers and arguments.paper != "none")
    paper = paper_table("table1") if has_paper else None
    grids: list[Grid] = []
    records: list[dict[str, Any]] = []
    for epoch in EPOCHS if arguments.epoch == "both" else (arguments.epoch,):
        table = score_table(rows, epoch)
        grids.append(score_grid(table, paper))
        records += score_records(table)
    grids.append(parameter_grid(rows))
    if paper is not None:
        records += paper_records("table1")
    if arguments.against is not None:
        from adalora.results.differences import differences, find_row

        numbers = {"resamples": arguments.resamples, "seed": arguments.bootstrap_seed}
        baseline = find_row(rows, arguments.against)
        found = differences(rows, baseline, level=arguments.level, **numbers)
        grids.append(difference_grid(found, level=arguments.level, **numbers))
        records += difference_records(found, arguments.level)
    return grids, records


def _write(
    grids: Sequence[Grid],
    records: Sequence[dict[str, Any]],
    notes: Sequence[str],
    arguments: argparse.Namespace,
) -> None:
    from adalora.tables.render import SUFFIXES, csv_text, latex, markdown, print_grid

    output: Path | None = arguments.output
    by_suffix = SUFFIXES.get(output.suffix) if output is not None else None
    form = arguments.format or by_suffix or "terminal"
    if form == "terminal":
        from rich.console import Console

        # A file is not folded: it has the width that its widest table needs.
        file = None if output is None else StringIO()
        console = Console(file=file, width=None if file is None else 10_000, highlight=False)
        for grid in grids:
            print_grid(console, grid)
        for note in notes:
            console.print(note, markup=False, emoji=file is None)
        if file is None:
            return
        text = file.getvalue()
    elif form == "csv":
        text = csv_text(records)
    else:
        write = markdown if form == "markdown" else latex
        text = "\n".join(write(grid) for grid in grids)
        if notes:
            mark = "- " if form == "markdown" else "% "
            text += "\n" + "".join(f"{mark}{note}\n" for note in notes)
    if output is None:
        print(text, end="")
        return
    with open_output(output, overwrite=arguments.overwrite) as stream:
        stream.write(text)
    print(f"Wrote {output}.")

"""``adalora compare RUN RUN``: what differs between two runs, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from adalora.commands.flags import CommandParser

__all__ = ["main"]


def main(flags: Sequence[str]) -> int:
    """Print one table a section."""
    parser = CommandParser(
        "compare",
        "Say what differs between two finished runs, of any method: flags, versions, outcome.",
        "  adalora compare output/rte-lora output/rte-adalora",
    )
    parser.add_argument("first", metavar="RUN", help="a run's folder (its --root_output_dir)")
    parser.add_argument("second", metavar="RUN", help="another")
    arguments = parser.parse_args(flags)

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adalora.results.sources import read_run
    from adalora.tables.comparison import comparison

    console = Console(highlight=False)
    runs = read_run(arguments.first), read_run(arguments.second)
    for section in comparison(*runs):
        if not section.lines and not section.remark:
            continue
        console.print(Text(section.title, style="bold"))
        if section.remark:
            console.print(Text(section.remark + "\n"))
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        table.add_column("")
        for name in ("first", "second"):
            table.add_column(name, overflow="fold")
        if any(line[3] for line in section.lines):
            table.add_column("second - first", justify="right")
        for line in section.lines:
            table.add_row(*map(Text, line[: len(table.columns)]))
        console.print(table)
    return 0

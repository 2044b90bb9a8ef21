"""``adalora compare`` and ``adalora report``: two finished runs side by side, and one as a page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adalora.commands.flags import CommandParser, add_output_flags
from adalora.errors import UserError
from adalora.shell import program


def compare(flags: Sequence[str]) -> int:
    """Print what differs between two runs, one table a section."""
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


def report(flags: Sequence[str]) -> int:
    """Write the page on a run or a sweep, and say where it is."""
    parser = CommandParser(
        "report",
        "Write one self-contained HTML page on a run or a sweep, and its pictures as SVG and PNG.",
        "  adalora report output/rte\n  adalora report output/sweep -o output/sweep-report",
    )
    parser.add_argument("source", metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    add_output_flags(
        parser,
        "FOLDER",
        "where to; default: report/ in that folder",
        overwrite="replace files there that are not an earlier report's (those it replaces anyway)",
    )
    arguments = parser.parse_args(flags)
    source = Path(arguments.source).expanduser()
    folder = arguments.output or source / "report"

    try:
        from adalora.report import write_report
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in ("matplotlib", "jinja2"):
            raise
        raise UserError(
            f"adalora report draws with {library}, which is not installed; type "
            f"'{program('pip')} install matplotlib jinja2' (the extra adalora[report])."
        ) from error
    page, *pictures = write_report(
        source, folder, overwrite=arguments.overwrite, announce=partial(print, flush=True)
    )
    print(f"Wrote {page} ({page.stat().st_size:,} bytes).")
    if pictures:
        print(f"Its pictures lie in {pictures[0].parent} as SVG and PNG, {len(pictures)} files.")
    return 0

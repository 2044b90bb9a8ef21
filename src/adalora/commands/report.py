"""``adalora report``: one page of HTML on a run or a sweep, with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adalora.commands.flags import CommandParser
from adalora.errors import UserError
from adalora.shell import program

__all__ = ["main"]

EXAMPLES = """  adalora report output/rte
  adalora report output/sweep -o output/sweep-report"""


def main(flags: Sequence[str]) -> int:
    """Write the report and say where it is."""
    parser = CommandParser(
        "report",
        "Write one self-contained HTML page on a run or a sweep, and its pictures as SVG and PNG.",
        EXAMPLES,
    )
    parser.add_argument("source", metavar="RUN|SWEEP", help="folder of a run or of a sweep")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="where to; default: report/ in that folder"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files there that are not an earlier report's (those it replaces anyway)",
    )
    arguments = parser.parse_args(flags)
    source = Path(arguments.source).expanduser()
    folder = Path(arguments.output).expanduser() if arguments.output else source / "report"

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

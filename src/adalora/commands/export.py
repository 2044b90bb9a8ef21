"""``adalora export``: a trained run in another program's format."""

from __future__ import annotations

from collections.abc import Sequence

from adalora.commands.flags import CommandParser
from adalora.export.formats import FORMATS, find_format

__all__ = ["main"]


def _parser() -> CommandParser:
    width = max(map(len, FORMATS))
    formats = "\n".join(f"  {name:<{width}}  {form.summary}" for name, form in FORMATS.items())
    parser = CommandParser(
        "export",
        "Write a trained run in the format of another program. The result is read back and\n"
        "compared with the run on random input before it gets its name.\n\n"
        f"formats:\n{formats}",
        "  adalora export output/rte --to merged --output output/rte-merged",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or the model/ in it")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="folder to make (loralib: file)"
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export there")
    parser.add_argument(
        "--base_model", metavar="MODEL", help="the base, if it is elsewhere than it was"
    )
    return parser


def main(flags: Sequence[str]) -> int:
    """Export, and say how well the result agrees with the run."""
    arguments = _parser().parse_args(flags)
    find_format(arguments.to)
    from adalora.commands.flags import require_our_loralib

    require_our_loralib()
    from adalora.export.convert import export_run

    done = export_run(
        arguments.run,
        to=arguments.to,
        output=arguments.output,
        force=arguments.force,
        base_model=arguments.base_model,
    )
    agreement = done.agreement
    print(f"Wrote {done.target} ({done.files} files, {done.bytes:,} bytes).")
    print(
        f"Checked on {agreement.batches} random batches: its logits differ from the run's by at "
        f"most {agreement.difference:.1e} ({agreement.allowed:.1e} is allowed)."
    )
    print(f"Use it:\n  {done.usage.replace(chr(10), chr(10) + '  ')}")
    return 0

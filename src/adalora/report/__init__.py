"""Reports to look at: one HTML page on a run or a sweep, and its pictures.

``adalora.results`` reads and summarises; the pictures draw, facts puts numbers into words, page
fills the templates and writes. Drawing needs the extra ``adalora[report]``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adalora.report.page import render, write_page
from adalora.results.sources import Sweep, read_source

__all__ = ["write_report"]

_MANY_RUNS = 20


def write_report(
    source: Path,
    folder: Path,
    *,
    overwrite: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write the report on the run or the sweep in ``source`` to ``folder``.

    Args:
        source: folder with ``run.json`` or ``results.jsonl``.
        folder: as in ``output.write_page``.
        overwrite: likewise.
        announce: told what takes long, before it does.

    Returns:
        The files written, the page first.

    Raises:
        UserError: as ``read_source`` and ``write_page``.
    """
    content = read_source(source)
    if isinstance(content, Sweep) and len(content.runs) > _MANY_RUNS:
        announce(f"Drawing the pictures of {len(content.runs)} runs, about a second for each two.")
    return write_page(render(content), folder, overwrite=overwrite)

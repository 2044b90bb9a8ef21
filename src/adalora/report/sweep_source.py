"""The folder of a sweep: the lines of ``results.jsonl`` and what lies in the folders they name."""

from __future__ import annotations

from pathlib import Path

from adalora.errors import UserError
from adalora.report.sources import FailedRun, RunSource, SweepSource, read_run
from adalora.results.sources import RESULTS_FILE, read_results

__all__ = ["read_sweep"]


def read_sweep(root: Path) -> SweepSource:
    """The sweep in ``root``; of several lines with one id the last finished one counts.

    Raises:
        UserError: if a line is damaged (but the last, which may still be being written), or no
            run has ended yet.
    """
    finished: dict[str, RunSource] = {}
    failed: dict[str, FailedRun] = {}
    results, notes = read_results(root / RESULTS_FILE)
    for result in results:
        name, cell = result.id, result.cell
        if result.record is None:
            failed[name] = FailedRun(name, cell, str(result.error))
        else:
            folder = _inside(root, result.folder)
            finished[name] = read_run(folder, result.record, name=name, cell=cell)
    if not finished and not failed:
        raise UserError(
            f"{root / RESULTS_FILE} has no finished run yet; report when the first has ended."
        )
    plan = root / "sweep.yaml"
    return SweepSource(
        name=root.resolve().name,
        plan=plan.read_text(encoding="utf-8", errors="replace") if plan.is_file() else "",
        runs=tuple(finished.values()),
        failed=tuple(run for name, run in failed.items() if name not in finished),
        notes=tuple(notes),
    )


def _inside(root: Path, folder: str) -> Path:
    """The run's folder; the file that names it may come from elsewhere, so it must lie in ours."""
    path = root / folder
    if not path.resolve().is_relative_to(root.resolve()):
        return root / "runs" / "absent"
    return path

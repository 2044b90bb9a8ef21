"""The folder of a sweep: the lines of ``results.jsonl`` and what lies in the folders they name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adalora.errors import UserError
from adalora.pages.sources import FailedRun, RunSource, SweepSource, read_run
from adalora.runs import RunRecord

__all__ = ["read_sweep"]


def read_sweep(root: Path) -> SweepSource:
    """The sweep in ``root``; of several lines with one id the last finished one counts.

    Raises:
        UserError: if a line is damaged (but the last, which may still be being written), or no
            run has ended yet.
    """
    results = root / "results.jsonl"
    finished: dict[str, RunSource] = {}
    failed: dict[str, FailedRun] = {}
    notes: list[str] = []
    for where, entry in _lines(results, notes):
        name, cell = str(entry.get("id")), entry.get("cell") or {}
        record = entry.get("record")
        if not isinstance(cell, dict) or not isinstance(record, dict | None):
            raise UserError(f"{where} is not a line of a sweep's results: cell or record is wrong.")
        if entry.get("status") == "failed":
            failed[name] = FailedRun(name, cell, str(entry.get("error") or "no reason given"))
        else:
            found = RunRecord.from_json(record or {}, source=where)
            folder = _inside(root, str(entry.get("folder") or ""))
            finished[name] = read_run(folder, found, name=name, cell=cell)
    if not finished and not failed:
        raise UserError(f"{results} has no finished run yet; report when the first has ended.")
    plan = root / "sweep.yaml"
    return SweepSource(
        name=root.resolve().name,
        plan=plan.read_text(encoding="utf-8", errors="replace") if plan.is_file() else "",
        runs=tuple(finished.values()),
        failed=tuple(run for name, run in failed.items() if name not in finished),
        notes=tuple(notes),
    )


def _lines(results: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = results.read_text(encoding="utf-8").split("\n")
    for position, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{results}, line {position}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            if position == len(lines):  # no line end after it: the writer was stopped in the middle
                notes.append("The last line of results.jsonl is incomplete and was left out.")
                return
            raise UserError(f"{where} is not JSON ({error}).") from error
        if not isinstance(entry, dict):
            raise UserError(f"{where} holds {type(entry).__name__}, and an object was expected.")
        yield where, entry


def _inside(root: Path, folder: str) -> Path:
    """The run's folder; the file that names it may come from elsewhere, so it must lie in ours."""
    path = root / folder
    if not folder or not path.resolve().is_relative_to(root.resolve()):
        return root / "runs" / "absent"
    return path

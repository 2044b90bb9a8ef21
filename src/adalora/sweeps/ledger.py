"""What a sweep has done: its folder, and ``results.jsonl``, to which one line is added per run.

Layout: ``sweep.yaml`` (as given), ``plan.json`` (the flags of every cell), ``results.jsonl``,
``runs/<id>/``. A line is written whole and flushed to the disk; what a killed process left of one
is taken off again, and its run found by the record in its folder. The line of a run that failed is
taken out when its flags have changed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from adalora.errors import UserError
from adalora.results.record import RECORD_FILE, RunRecord
from adalora.results.sources import RESULTS_FILE, Result, read_results
from adalora.storage.atomic import atomic_write, locked_folder, without_links
from adalora.storage.files import read_json, write_json
from adalora.sweeps.cells import Cell

_PLAN_FILE = "plan.json"
_SPEC_FILE = "sweep.yaml"


class Ledger:
    """The folder of one sweep; make it by ``Ledger.opened``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[str, Result] = {}

    @classmethod
    @contextmanager
    def opened(cls, folder: Path) -> Iterator[Self]:
        """Hold the folder of a sweep, made if it is not there, and read what was done in it.

        Raises:
            UserError: if it cannot be written, another sweep is at work in it, it holds other
                things, or its results cannot be read.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {str(folder)!r} cannot be made ({error}).") from error
        with locked_folder(folder, flag="--output"):
            strange = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
            if strange and not (folder / _SPEC_FILE).is_file():
                raise UserError(
                    f"--output {str(folder)!r} holds {strange[0]!r} and is no sweep's folder; "
                    "choose an empty or a new one."
                )
            ledger = cls(folder)
            ledger._read()
            yield ledger

    def run_folder(self, cell: Cell) -> Path:
        """Where the run of ``cell`` writes."""
        return self.folder / "runs" / cell.id

    # ---- the plan ----

    def plan(self, text: str, cells: Sequence[Cell]) -> list[str]:
        """Take a plan over: the file as given, and the cells that it means.

        The same sweep may be planned again, with more or fewer cells. A run that was begun with
        other flags starts afresh; one that has finished with other flags is not thrown away.

        Returns:
            Ids of runs that failed with other flags than they have now: their lines are taken
            out, so that they are open again, whatever ends this sweep before they have run.

        Raises:
            UserError: if a finished run was made with other flags than its cell has now.
        """
        path = self.folder / _PLAN_FILE
        earlier: dict[str, Any] = read_json(path) if path.is_file() else {}
        changed = [cell for cell in cells if earlier.get(cell.id, cell.flags) != cell.flags]
        for cell in changed:
            before, folder = earlier[cell.id], self.run_folder(cell)
            if self._has_finished(cell.id) or (folder / RECORD_FILE).is_file():
                raise UserError(
                    f"The run {cell.id} in {self.folder} has finished with other flags than it "
                    f"has now ({_difference(before, cell.flags)}); choose another --output, or "
                    "take the change back."
                )
        for cell in changed:
            shutil.rmtree(self.run_folder(cell), ignore_errors=True)
        mended = [cell.id for cell in changed if self.results.pop(cell.id, None) is not None]
        if mended:
            _drop(self.folder / RESULTS_FILE, mended)
        write_json(path, earlier | {cell.id: dict(cell.flags) for cell in cells})
        with atomic_write(self.folder / _SPEC_FILE) as new:
            new.write_text(text, encoding="utf-8")
        return mended

    def adopt(self, cells: Sequence[Cell]) -> int:
        """Note the runs that finished while nobody was left to write their line; their number."""
        adopted = 0
        for cell in cells:
            if self._has_finished(cell.id) or not (self.run_folder(cell) / RECORD_FILE).is_file():
                continue
            self.add(Result(cell.id, cell.axes, record=RunRecord.read(self.run_folder(cell))))
            adopted += 1
        return adopted

    def _has_finished(self, name: str) -> bool:
        return name in self.results and self.results[name].record is not None

    # ---- the results ----

    def add(self, result: Result) -> None:
        """Add a line for a run that has ended, on the disk before this returns."""
        line = json.dumps(result.to_json(), allow_nan=False, ensure_ascii=False) + "\n"
        with open(self.folder / RESULTS_FILE, "ab", opener=without_links) as file:
            file.write(line.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.results[result.id] = result

    def _read(self) -> None:
        path = self.folder / RESULTS_FILE
        if not path.is_file():
            return
        _mend(path)
        self.results |= {result.id: result for result in read_results(path)[0]}


def _drop(path: Path, names: Collection[str]) -> None:
    """Take the lines on the runs ``names`` out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if line.strip() and json.loads(line)["id"] not in names]
    with atomic_write(path) as new:
        new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _mend(path: Path) -> None:
    """Take off a last line that was being written when its process was killed."""
    content = path.read_bytes()
    kept, newline, torn = content.rpartition(b"\n")
    if not torn:
        return
    try:
        json.loads(torn)
    except ValueError:
        with path.open("r+b") as file:
            file.truncate(len(kept) + len(newline))
    else:
        with path.open("ab") as file:
            file.write(b"\n")


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return "; ".join(f"{name}: then {before.get(name)}, now {now.get(name)}" for name in names[:3])

"""The one reader of finished runs: from sweep folders, their ledgers and run folders to runs.

``read_source`` reads what a report is on, ``read_sources`` whatever a table is made from; rows,
columns and scores come from ``rows`` and ``scores``, what else lies in a run's folder from
``history``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from adalora.errors import UserError
from adalora.results.record import RECORD_FILE, RunRecord

RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class Run:
    """A finished run: record, folder (None where it is gone), cell and id in a sweep."""

    record: RunRecord
    folder: Path | None
    cell: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    @property
    def name(self) -> str:
        """Its id in the sweep, or the name of its folder."""
        if self.id or self.folder is None:
            return self.id or f"seed {self.record.seed}"
        return self.folder.resolve().name

    @property
    def task(self) -> str:
        """The task; of the user's own data the sweep's name for it, or that of the file."""
        if self.record.task is not None:
            return self.record.task
        if self.cell.get("task"):
            return str(self.cell["task"])
        flags = self.record.flags
        own = flags.get("validation_file") or flags.get("train_file")
        return Path(str(own)).stem if own else "own data"


@dataclass(frozen=True)
class Failure:
    """A run of a sweep that failed, and why, in one line."""

    name: str
    cell: Mapping[str, Any]
    error: str

    @property
    def task(self) -> str:
        """The task, as the sweep names it."""
        return str(self.cell.get("task") or "own data")


@dataclass(frozen=True)
class Sweep:
    """Runs that are looked at together: those of a sweep so far, or of all folders named."""

    runs: tuple[Run, ...]  #: finished, in the order in which they were named or noted
    failures: tuple[Failure, ...] = ()  #: of runs that have not finished since
    notes: tuple[str, ...] = ()  #: sentences on what was left out
    name: str = ""  #: of the sweep's folder; empty for several sources
    plan: str = ""  #: ``sweep.yaml`` as it was given; empty where there is none


def read_sources(paths: Iterable[str]) -> Sweep:
    """Read sweep folders, ``results.jsonl`` files, run folders, and folders of run folders.

    A run that is named twice counts once.

    Raises:
        UserError: if a path is none of them, a line cannot be read, or no run is found at all.
    """
    runs: dict[Path, Run] = {}
    failures: dict[Path, Failure] = {}
    notes: list[str] = []
    named = list(paths)
    for word in named:
        path = Path(word).expanduser()
        if not path.exists():
            raise UserError(f"{path} does not exist; name a sweep's folder or a run's folder.")
        if path.suffix == ".jsonl" or (path / RESULTS_FILE).is_file():
            found = _read_ledger(path if path.is_file() else path / RESULTS_FILE)
            runs |= found[0]
            failures |= found[1]
            notes += found[2]
            continue
        folders = (
            [path]
            if (path / RECORD_FILE).is_file()
            else sorted(record.parent for record in path.glob(f"*/{RECORD_FILE}"))
        )
        if not folders:
            raise UserError(
                f"{path} holds neither {RESULTS_FILE} (of a sweep) nor {RECORD_FILE} (of a "
                "finished run), nor folders with one; finish the run first, or name another folder."
            )
        runs |= {folder.resolve(): read_run(folder) for folder in folders}
    if not runs:
        first = next(iter(failures.values()), None)
        why = "" if first is None else f" The first of {len(failures)} failures: {first.error}"
        raise UserError(f"No finished run was found in {', '.join(named)}.{why}")
    return Sweep(tuple(runs.values()), tuple(failures.values()), tuple(notes))


def read_source(path: Path) -> Run | Sweep:
    """The run or the sweep in the folder ``path``; failures alone are a sweep too.

    Raises:
        UserError: if it is neither, is damaged, or no run of the sweep has ended yet.
    """
    if (path / RESULTS_FILE).is_file():
        runs, failures, notes = _read_ledger(path / RESULTS_FILE)
        if not runs and not failures:
            raise UserError(
                f"{path / RESULTS_FILE} has no finished run yet; report when the first has ended."
            )
        plan = path / "sweep.yaml"
        return Sweep(
            runs=tuple(runs.values()),
            failures=tuple(failures.values()),
            notes=tuple(notes),
            name=path.resolve().name,
            plan=plan.read_text(encoding="utf-8", errors="replace") if plan.is_file() else "",
        )
    if (path / RECORD_FILE).is_file():
        return read_run(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder of a run or of a sweep.")
    raise UserError(
        f"{path} holds neither {RECORD_FILE} (the folder of a finished run of run_glue.py) nor "
        f"{RESULTS_FILE} (the folder of a sweep), so there is nothing to report."
    )


def read_run(folder: str | Path) -> Run:
    """The run in ``folder``, refused if its record is absent or cannot be read."""
    folder = Path(folder).expanduser()
    return Run(RunRecord.read(folder), folder)


def _read_ledger(path: Path) -> tuple[dict[Path, Run], dict[Path, Failure], list[str]]:
    """The runs and the failures of a sweep, by their folders; the last word on a run counts.

    So a run that failed and was repeated is what it became. The file may come from elsewhere: only
    folders inside its own are looked into.
    """
    runs: dict[Path, Run] = {}
    failures: dict[Path, Failure] = {}
    results, notes = read_results(path)
    root = path.parent.resolve()
    for result in results:
        folder = path.parent / result.folder
        key = folder.resolve()
        if result.record is not None:
            failures.pop(key, None)
            there = folder.is_dir() and key.is_relative_to(root)
            runs[key] = Run(result.record, folder if there else None, result.cell, result.id)
        elif key not in runs:
            failures[key] = Failure(result.id, result.cell, " ".join(str(result.error).split()))
    return runs, failures, notes


@dataclass(frozen=True)
class Result:
    """How one run ended."""

    id: str  #: name of the run in its sweep
    cell: Mapping[str, Any]  #: what the sweep varied (task, method, seed, ...) -> its value
    record: RunRecord | None = None  #: of a run that finished
    error: str | None = None  #: of one that failed
    folder: str = ""  #: of the run, seen from the file; ``runs/<id>`` where empty

    @property
    def status(self) -> Literal["finished", "failed"]:
        """As in the file."""
        return "failed" if self.record is None else "finished"

    def to_json(self) -> dict[str, Any]:
        """One line of the file."""
        return {
            "id": self.id,
            "status": self.status,
            "cell": dict(self.cell),
            "error": self.error,
            "record": None if self.record is None else self.record.to_json(),
            "folder": self.folder or f"runs/{self.id}",
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """The result in a line, refused if something is missing from it or of another kind."""
        try:
            name, status = str(values["id"]), values["status"]
            record = values.get("record") or {}
            finished = RunRecord.from_json(record, source=source) if status == "finished" else None
            return cls(
                id=name,
                cell=dict(values.get("cell") or {}),
                record=finished,
                error=None if finished else str(values.get("error") or "no reason was noted"),
                folder=str(values.get("folder") or f"runs/{name}"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(source, error) from error


def read_results(path: Path) -> tuple[list[Result], list[str]]:
    """The results in the file ``path``, in the order of its lines, and notes on what was left out.

    A process that is killed while it writes leaves half a line, which only the last can be; it is
    left out with a note.

    Raises:
        UserError: if another line cannot be read.
    """
    results: list[Result] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        source = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                return results, [f"{source} is cut off and was left out."]
            raise _damaged(source, error) from error
        results.append(Result.from_json(values, source=source))
    return results, []


def _damaged(source: str, error: Exception) -> UserError:
    return UserError(
        f"{source}: not a line of a sweep's results ({error}); take the line out to have its run "
        "noted or made again."
    )

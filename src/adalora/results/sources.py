"""From what the user names (sweep folders, ``results.jsonl``, run folders) to runs and failures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from adalora.errors import UserError
from adalora.results.record import RECORD_FILE, RunRecord

__all__ = [
    "RESULTS_FILE",
    "Failure",
    "Result",
    "Run",
    "Sources",
    "read_results",
    "read_run",
    "read_sources",
]


@dataclass(frozen=True)
class Run:
    """A finished run: its record, its folder (None where it is gone), its cell in a sweep."""

    record: RunRecord
    folder: Path | None
    cell: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.folder) if self.folder is not None else f"seed {self.record.seed}"

    @property
    def task(self) -> str:
        """The task, or the name of the user's own file."""
        if self.record.task is not None:
            return self.record.task
        flags = self.record.flags
        own = flags.get("validation_file") or flags.get("train_file")
        return Path(str(own)).stem if own else "own data"


@dataclass(frozen=True)
class Failure:
    """A run of a sweep that failed, and why."""

    name: str
    cell: Mapping[str, Any]
    error: str


@dataclass(frozen=True)
class Sources:
    """All that was found, in the order in which it was named; ``notes`` tell what was left out."""

    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...] = ()


def read_sources(paths: Iterable[str]) -> Sources:
    """Read sweep folders, ``results.jsonl`` files, run folders, and folders of run folders.

    A run that is named twice counts once. A sweep's later line on a run replaces the earlier one,
    so that a run which failed and was repeated counts as what it became.

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
            found = _read_results(path if path.is_file() else path / RESULTS_FILE)
            runs |= found[0]
            failures |= found[1]
            notes += found[2]
            continue
        folders = [path] if (path / RECORD_FILE).is_file() else sorted(_parents(path))
        if not folders:
            raise UserError(
                f"{path} holds neither {RESULTS_FILE} (of a sweep) nor {RECORD_FILE} (of a "
                "finished run), nor folders with one; finish the run first, or name another folder."
            )
        for folder in folders:
            runs[folder.resolve()] = read_run(folder)
    if not runs:
        first = next(iter(failures.values()), None)
        why = "" if first is None else f" The first of {len(failures)} failures: {first.error}"
        raise UserError(f"No finished run was found in {', '.join(named)}.{why}")
    return Sources(tuple(runs.values()), tuple(failures.values()), tuple(notes))


def read_run(folder: str | Path) -> Run:
    """The run in ``folder``.

    Raises:
        UserError: if it holds no record, or one that cannot be read.
    """
    folder = Path(folder).expanduser()
    return Run(RunRecord.read(folder), folder)


def _parents(path: Path) -> Iterable[Path]:
    return (record.parent for record in path.glob(f"*/{RECORD_FILE}"))


def _read_results(path: Path) -> tuple[dict[Path, Run], dict[Path, Failure], list[str]]:
    runs: dict[Path, Run] = {}
    failures: dict[Path, Failure] = {}
    results, notes = read_results(path)
    for result in results:
        folder = path.parent / result.folder
        key = folder.resolve()
        if result.record is not None:
            failures.pop(key, None)
            runs[key] = Run(result.record, folder if folder.is_dir() else None, result.cell)
        elif key not in runs:
            failures[key] = Failure(result.id, result.cell, " ".join(str(result.error).split()))
    return runs, failures, notes


RESULTS_FILE = "results.jsonl"


@dataclass(frozen=True)
class Result:
    """How one run ended.

    Attributes:
        id: name of the run in its sweep.
        cell: what the sweep varied (task, method, seed, ...) -> its value.
        record: of a run that finished.
        error: of one that failed.
        folder: of the run, seen from the file; ``runs/<id>`` where empty.
    """

    id: str
    cell: Mapping[str, Any]
    record: RunRecord | None = None
    error: str | None = None
    folder: str = ""

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
        """The result in a line.

        Raises:
            UserError: if something is missing from it, or of another kind.
        """
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

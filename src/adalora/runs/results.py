"""``results.jsonl`` of a sweep: one line per run that ended, whoever reads or writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from adalora.errors import UserError
from adalora.runs.record import RunRecord

__all__ = ["RESULTS_FILE", "Result", "read_results"]

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

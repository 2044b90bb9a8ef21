"""What a report is made from: the folder of a run or of a sweep, read once and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora.errors import UserError
from adalora.results.history import History, read_history
from adalora.results.record import RECORD_FILE, RunRecord
from adalora.results.sources import RESULTS_FILE

__all__ = ["Confusion", "FailedRun", "RunSource", "SweepSource", "read_run", "read_source"]

# More classes than these are numbers (STS-B), or make no table that can be read.
_MOST_CLASSES = 12


@dataclass(frozen=True)
class Confusion:
    """How often each true class was predicted as each: ``counts[true][predicted]``."""

    name: str
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class RunSource:
    """A finished run.

    Attributes:
        name: of its folder, or its id in a sweep.
        record: the facts.
        history: its course; empty where none was kept.
        confusions: one per evaluation set whose predictions were kept and are classes.
        cell: what the sweep varied; empty outside one.
        notes: sentences on what could not be read.
    """

    name: str
    record: RunRecord
    history: History = field(default_factory=History)
    confusions: tuple[Confusion, ...] = ()
    cell: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FailedRun:
    """A run of a sweep that ended with an error."""

    name: str
    cell: Mapping[str, Any]
    error: str


@dataclass(frozen=True)
class SweepSource:
    """A sweep, finished or not: its plan as given, and the runs so far."""

    name: str
    plan: str
    runs: tuple[RunSource, ...]
    failed: tuple[FailedRun, ...]
    notes: tuple[str, ...] = ()


def read_source(path: Path) -> RunSource | SweepSource:
    """The run or the sweep in the folder ``path``.

    Raises:
        UserError: if it is neither, is damaged, or no run of the sweep has ended yet.
    """
    if (path / RESULTS_FILE).is_file():
        from adalora.report.sweep_source import read_sweep

        return read_sweep(path)
    if (path / RECORD_FILE).is_file():
        return read_run(path, RunRecord.read(path))
    if not path.exists():
        raise UserError(f"{path} does not exist; name the folder of a run or of a sweep.")
    raise UserError(
        f"{path} holds neither {RECORD_FILE} (the folder of a finished run of run_glue.py) nor "
        f"{RESULTS_FILE} (the folder of a sweep), so there is nothing to report."
    )


def read_run(
    folder: Path, record: RunRecord, *, name: str | None = None, cell: Mapping[str, Any] = {}
) -> RunSource:
    """What lies beside a run's record; a damaged part is left out and said."""
    notes: list[str] = []
    try:
        history = read_history(folder / "history.json")
    except UserError as error:
        history = History()
        notes.append(str(error))
    confusions = []
    for path in sorted(folder.glob("eval_predictions_*.tsv")):
        try:
            confusion = _read_confusion(path)
        except (OSError, UnicodeDecodeError, ValueError) as error:
            notes.append(f"{path.name} could not be read ({error}).")
            continue
        if confusion is not None:
            confusions.append(confusion)
    return RunSource(
        name=folder.resolve().name if name is None else name,
        record=record,
        history=history,
        confusions=tuple(confusions),
        cell=dict(cell),
        notes=tuple(notes),
    )


def _read_confusion(path: Path) -> Confusion | None:
    """The counts in a file of predictions; None where they are numbers or of very many classes."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if lines[0].split("\t") != ["index", "label", "prediction"]:
        raise ValueError(f"its first line is {lines[0][:60]!r}, not index, label, prediction")
    pairs: Counter[tuple[str, str]] = Counter()
    for position, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if len(cells) != 3:
            raise ValueError(f"line {position} has {len(cells)} columns, and 3 were expected")
        pairs[cells[1], cells[2]] += 1
    classes = sorted({name for pair in pairs for name in pair})
    if not 2 <= len(classes) <= _MOST_CLASSES or all(_is_fraction(name) for name in classes):
        return None
    return Confusion(
        name=path.stem.removeprefix("eval_predictions_"),
        classes=tuple(classes),
        counts=tuple(tuple(pairs[true, guess] for guess in classes) for true in classes),
    )


def _is_fraction(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return "." in word

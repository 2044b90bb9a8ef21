"""The runs of a sweep: how long they will take, and making them, noted and tidied as each ends."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adalora.errors import UserError
from adalora.results.record import RunRecord
from adalora.results.sources import Result
from adalora.storage.files import read_json
from adalora.storage.snapshots import snapshots
from adalora.sweeps.cells import Cell, words
from adalora.sweeps.ledger import Ledger
from adalora.sweeps.processes import (
    MEASURE,
    OUTPUT_FILE,
    Executor,
    Job,
    error_of,
    outcome_of,
    prepare,
)

Keep = Literal["all", "best", "none"]


def open_cells(ledger: Ledger, cells: Sequence[Cell], *, retry_failed: bool) -> list[Cell]:
    """The cells that have not ended yet; those that failed are open again if they are retried."""
    return [
        cell
        for cell in cells
        if cell.id not in ledger.results
        or (retry_failed and ledger.results[cell.id].record is None)
    ]


def run_cells(
    ledger: Ledger,
    cells: Sequence[Cell],
    todo: Sequence[Cell],
    executor: Executor,
    *,
    keep: Keep,
    started: Callable[[Cell], None],
    ended: Callable[[Cell, Result], None],
) -> None:
    """Run ``todo`` to the end, whatever becomes of each, and note it in ``ledger``.

    Args:
        cells: of the whole sweep, for which models are kept.
        started: called when a run begins.
        ended: called when one has ended, one way or the other.
    """
    by_id, waiting, running = {cell.id: cell for cell in todo}, list(todo), 0

    def end(cell: Cell, outcome: RunRecord | str) -> None:
        if isinstance(outcome, str):
            result = Result(cell.id, cell.axes, error=outcome)
        else:
            result = Result(cell.id, cell.axes, record=outcome)
        ledger.add(result)
        tidy(ledger, cells, keep)
        ended(cell, result)

    while waiting or running:
        while waiting and executor.has_room():
            cell = waiting.pop(0)
            folder = ledger.run_folder(cell)
            try:
                prepare(folder)
            except UserError as error:
                end(cell, str(error))
                continue
            executor.start(Job(cell.id, words(cell.flags), folder))
            running += 1
            started(cell)
        for job, status in executor.ended(0.5):
            running -= 1
            end(by_id[job.id], outcome_of(job.folder, status))


def main_score(record: RunRecord) -> tuple[str, float] | None:
    """The main metric on the first evaluation set and its value; None without an evaluation."""
    split = next(iter(record.scores), None)
    return None if split is None else (record.scores[split]["main"], record.score(split))


def tidy(ledger: Ledger, cells: Sequence[Cell], keep: Keep) -> None:
    """Remove models and checkpoints of finished runs that ``keep`` does not ask for.

    ``best`` keeps, of each setting, the model of the seed with the best main metric.
    """
    if keep == "all":
        return
    best: dict[str, tuple[float, str]] = {}
    finished = []
    for cell in cells:
        result = ledger.results.get(cell.id)
        if result is None or result.record is None:
            continue
        finished.append(cell)
        score = main_score(result.record)
        rank = (-math.inf if score is None or math.isnan(score[1]) else score[1], cell.id)
        best[cell.group] = max(best.get(cell.group, rank), rank)
    for cell in finished:
        model = ledger.run_folder(cell) / "model"
        if keep == "best" and best[cell.group][1] == cell.id:
            for checkpoint in snapshots(model):
                shutil.rmtree(checkpoint)
        else:
            shutil.rmtree(model, ignore_errors=True)


#: In the folder of a measured run (``adalora.sweeps.child``).
MEASURED_FILE = "measured.json"


@dataclass(frozen=True)
class Estimate:
    """What one run of a group takes; ``problem`` says why it could not be measured."""

    seconds: float = 0.0  #: of the whole process: start, training, evaluation
    steps: int = 0  #: optimizer steps
    step_seconds: float = 0.0  #: of one of them
    memory_bytes: int | None = None  #: at its most so far
    problem: str | None = None  #: None where all is known


def estimate(
    cells: Sequence[Cell], executor: Executor, *, noted: Callable[[int, int], None]
) -> dict[str, Estimate]:
    """Measure one cell of each group (``Cell.group``), as many at a time as there will be.

    ``noted`` is called with how many are measured, and of how many.
    """
    first = {cell.group: cell for cell in reversed(cells)}
    groups = {cell.id: group for group, cell in first.items()}
    waiting, found = list(first.values()), dict[str, Estimate]()
    with tempfile.TemporaryDirectory(prefix="adalora-estimate-") as folder:
        while len(found) < len(first):
            while waiting and executor.has_room():
                cell = waiting.pop(0)
                place = Path(folder) / cell.id
                place.mkdir()
                executor.start(Job(cell.id, words(cell.flags), place, MEASURE))
            for job, status in executor.ended(0.5):
                found[groups[job.id]] = _read(job.folder, status)
                noted(len(found), len(first))
    return found


def _read(folder: Path, status: int) -> Estimate:
    path = folder / MEASURED_FILE
    if status != 0 or not path.is_file():
        return Estimate(problem=error_of(folder / OUTPUT_FILE, status))
    facts = read_json(path)
    known = {name: facts[name] for name in ("seconds", "steps", "step_seconds")}
    return Estimate(**known, memory_bytes=facts["peak_memory_bytes"])

"""How long a sweep will take: a few steps of each distinct setting, measured as they will run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adalora.storage.files import read_json
from adalora.sweeps.cells import Cell, words
from adalora.sweeps.processes import MEASURE, OUTPUT_FILE, Executor, Job, error_of

#: In the folder of a measured run (``adalora.sweeps.child``).
MEASURED_FILE = "measured.json"


@dataclass(frozen=True)
class Estimate:
    """What one run of a group takes; ``problem`` says why it could not be measured.

    Attributes:
        seconds: of the whole process: start, training, evaluation.
        steps: optimizer steps.
        step_seconds: of one of them.
        memory_bytes: at its most so far.
        problem: None where all is known.
    """

    seconds: float = 0.0
    steps: int = 0
    step_seconds: float = 0.0
    memory_bytes: int | None = None
    problem: str | None = None


def estimate(
    cells: Sequence[Cell], executor: Executor, *, noted: Callable[[int, int], None]
) -> dict[str, Estimate]:
    """Measure one cell of each group (``Cell.group``), as many at a time as there will be.

    Args:
        cells: of the sweep.
        executor: that will run it.
        noted: called with how many are measured, and of how many.
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

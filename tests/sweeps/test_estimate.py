"""What a sweep will take: a measurement for each group of cells, those of a grid too."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from adalora.sweeps.cells import Cell, Spec, cells_of
from adalora.sweeps.display import plan_table
from adalora.sweeps.processes import Job
from adalora.sweeps.runner import MEASURED_FILE, Estimate, estimate

SPEC = Spec(
    name="grid",
    base={},
    tasks={"cola": {}},
    methods={"lora": {}},
    seeds=(1, 2),
    grid={"max_seq_length": [64, 128]},
)


class Measured:
    """An executor whose runs take a second for each token of the longest text."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def has_room(self) -> bool:
        return True

    def start(self, job: Job) -> None:
        self.jobs.append(job)
        length = int(job.words[list(job.words).index("--max_seq_length") + 1])
        facts: dict[str, Any] = {"seconds": length, "steps": 3, "step_seconds": 0.1}
        content = json.dumps({**facts, "peak_memory_bytes": None})
        (job.folder / MEASURED_FILE).write_text(content, encoding="utf-8")

    def ended(self, seconds: float) -> Sequence[tuple[Job, int]]:
        ended, self.jobs = self.jobs, []
        return [(job, 0) for job in ended]

    def stop(self) -> None: ...


def measured(cells: Sequence[Cell]) -> dict[str, Estimate]:
    return estimate(cells, Measured(), noted=lambda done, of: None)


def test_each_value_of_a_grid_is_measured_and_counts_with_its_own_time() -> None:
    cells = cells_of(SPEC)
    estimates = measured(cells)
    assert len(estimates) == 2
    assert sum(estimates[cell.group].seconds for cell in cells) == 2 * 64 + 2 * 128


def test_the_plan_has_a_row_for_each_value_of_a_grid() -> None:
    cells = cells_of(SPEC)
    console = Console(width=120, file=io.StringIO())
    console.print(plan_table(cells, measured(cells)))
    lines = console.file.getvalue().splitlines()
    rows = [line.split() for line in lines if "cola" in line]
    assert [row[:4] for row in rows] == [["cola", "lora", "64", "2"], ["cola", "lora", "128", "2"]]
    assert "1 min 4 s" in " ".join(rows[0])
    assert "2 min 8 s" in " ".join(rows[1])

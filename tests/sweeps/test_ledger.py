"""What a sweep has done survives whatever ends it, and is never thrown away unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adalora.errors import UserError
from adalora.results.record import RunRecord
from adalora.results.sources import RESULTS_FILE, Result
from adalora.sweeps.ledger import Ledger
from adalora.sweeps.runner import open_cells, tidy

Make = Callable[..., Any]


@pytest.fixture
def noted(tmp_path: Path, make_cell: Make, make_record: Make) -> Path:
    """A sweep's folder with one finished and one failed run of three."""
    folder = tmp_path / "sweep"
    with Ledger.opened(folder) as ledger:
        cells = [make_cell(seed) for seed in (1, 2, 3)]
        ledger.plan("tasks: [cola]\n", cells)
        ledger.add(Result(cells[0].id, cells[0].axes, record=make_record()))
        ledger.add(Result(cells[1].id, cells[1].axes, error="It broke."))
    return folder


def lines(folder: Path) -> list[str]:
    return (folder / RESULTS_FILE).read_text(encoding="utf-8").splitlines()


def test_a_line_holds_all_that_was_promised(noted: Path, make_record: Make) -> None:
    finished, failed = (json.loads(line) for line in lines(noted))
    assert finished == {
        "id": "cola_lora_seed1",
        "status": "finished",
        "cell": {"task": "cola", "method": "lora", "budget": None, "seed": 1},
        "error": None,
        "record": make_record().to_json(),
        "folder": "runs/cola_lora_seed1",
    }
    assert (failed["status"], failed["error"], failed["record"]) == ("failed", "It broke.", None)
    assert (noted / "sweep.yaml").read_text() == "tasks: [cola]\n"


def test_what_was_done_is_read_again_and_only_the_rest_is_open(
    noted: Path, make_cell: Make, make_record: Make
) -> None:
    cells = [make_cell(seed) for seed in (1, 2, 3)]
    with Ledger.opened(noted) as ledger:
        assert ledger.results["cola_lora_seed1"].record == make_record()
        todo = open_cells(ledger, cells, retry_failed=False)
        assert [cell.axes["seed"] for cell in todo] == [3]
        todo = open_cells(ledger, cells, retry_failed=True)
        assert [cell.axes["seed"] for cell in todo] == [2, 3]


@pytest.mark.parametrize("torn", [1, 40, -2])
def test_a_line_torn_by_a_kill_is_taken_off_and_its_run_found_by_its_record(
    noted: Path, make_cell: Make, make_record: Make, torn: int
) -> None:
    whole = (noted / RESULTS_FILE).read_text(encoding="utf-8")
    third = json.dumps(Result("cola_lora_seed3", {}, record=make_record()).to_json())
    (noted / RESULTS_FILE).write_text(whole + third[:torn], encoding="utf-8")
    cell = make_cell(3)
    with Ledger.opened(noted) as ledger:
        assert (noted / RESULTS_FILE).read_text(encoding="utf-8") == whole
        assert [one.id for one in open_cells(ledger, [cell], retry_failed=False)] == [cell.id]
        ledger.run_folder(cell).mkdir(parents=True)
        make_record().write(ledger.run_folder(cell))
        assert ledger.adopt([cell]) == 1
        assert open_cells(ledger, [cell], retry_failed=False) == []
    assert len(lines(noted)) == 3
    assert json.loads(lines(noted)[2])["cell"] == cell.axes


def test_a_last_line_that_only_lacks_its_end_is_kept(noted: Path) -> None:
    path = noted / RESULTS_FILE
    path.write_text(path.read_text(encoding="utf-8").removesuffix("\n"), encoding="utf-8")
    with Ledger.opened(noted) as ledger:
        assert len(ledger.results) == 2
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert len(lines(noted)) == 2


def test_a_damaged_line_in_the_middle_is_told_with_its_number(noted: Path) -> None:
    path = noted / RESULTS_FILE
    path.write_text("{broken\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="line 1: not a line of a sweep"), Ledger.opened(noted):
        pass


def test_a_later_line_stands_in_for_an_earlier_one(
    noted: Path, make_cell: Make, make_record: Make
) -> None:
    with Ledger.opened(noted) as ledger:
        ledger.add(Result("cola_lora_seed2", make_cell(2).axes, record=make_record()))
    with Ledger.opened(noted) as ledger:
        assert ledger.results["cola_lora_seed2"].status == "finished"
    assert len(lines(noted)) == 3


def test_the_plan_may_grow_but_not_change_what_has_finished(noted: Path, make_cell: Make) -> None:
    with Ledger.opened(noted) as ledger:
        ledger.plan("more\n", [make_cell(seed) for seed in (1, 2, 3, 4)])
        changed = make_cell(1, learning_rate=2)
        with pytest.raises(UserError, match="learning_rate: then None, now 2"):
            ledger.plan("other\n", [changed])
        assert (noted / "sweep.yaml").read_text() == "more\n"


def test_a_run_that_was_begun_with_other_flags_starts_afresh(noted: Path, make_cell: Make) -> None:
    with Ledger.opened(noted) as ledger:
        for seed in (2, 3):
            folder = ledger.run_folder(make_cell(seed))
            folder.mkdir(parents=True)
            (folder / "half").touch()
        cells = [make_cell(2, learning_rate=2), make_cell(3)]
        assert ledger.plan("other\n", cells) == [cells[0].id]
        assert not ledger.run_folder(cells[0]).exists()
        assert (ledger.run_folder(cells[1]) / "half").exists()
        # It failed with the old flags, so it is open again.
        assert open_cells(ledger, cells, retry_failed=False) == cells
    # And it stays open if the sweep is ended before it has run; with the same flags it has failed.
    with Ledger.opened(noted) as ledger:
        assert ledger.plan("other\n", cells) == []
        assert open_cells(ledger, cells, retry_failed=False) == cells
        ledger.add(Result(cells[0].id, cells[0].axes, error="It broke again."))
    with Ledger.opened(noted) as ledger:
        assert ledger.plan("other\n", cells) == []
        assert open_cells(ledger, cells, retry_failed=False) == cells[1:]
        assert ledger.results["cola_lora_seed1"].status == "finished"


def test_one_sweep_at_a_time_works_in_a_folder(noted: Path) -> None:
    with (
        Ledger.opened(noted),
        pytest.raises(UserError, match=r"--output .* is in use by process"),
        Ledger.opened(noted),
    ):
        pass


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    says = r"holds 'thesis\.tex' and is no sweep's folder"
    with pytest.raises(UserError, match=says), Ledger.opened(tmp_path):
        pass
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["thesis.tex"]


@pytest.mark.parametrize(("keep", "left"), [("all", [1, 2, 3]), ("best", [2]), ("none", [])])
def test_the_models_asked_for_are_kept(
    tmp_path: Path, make_cell: Make, make_record: Make, keep: Any, left: list[int]
) -> None:
    cells = [make_cell(seed) for seed in (1, 2, 3)]
    scores: dict[int, RunRecord] = {1: make_record(0.5), 2: make_record(0.9), 3: make_record(0.7)}
    with Ledger.opened(tmp_path) as ledger:
        for cell in cells:
            (ledger.run_folder(cell) / "model" / "checkpoint-3").mkdir(parents=True)
            ledger.add(Result(cell.id, cell.axes, record=scores[cell.axes["seed"]]))
            tidy(ledger, cells, keep)
        models = [cell for cell in cells if (ledger.run_folder(cell) / "model").is_dir()]
        assert [cell.axes["seed"] for cell in models] == left
        checkpoints = list(tmp_path.rglob("checkpoint-3"))
        assert len(checkpoints) == (3 if keep == "all" else 0)

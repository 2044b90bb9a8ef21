"""The page of a sweep: the table, the pictures, every run one click away, failures in sight."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adalora.errors import UserError
from adalora.report import write_report
from adalora.report.sources import SweepSource, read_source
from adalora.report.summary import summarise
from adalora.report.sweep_pictures import frontier


@pytest.fixture(scope="module")
def page(sweep_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(sweep_folder, folder)[0].read_text(encoding="utf-8")


def read_sweep(folder: Path) -> SweepSource:
    source = read_source(folder)
    assert isinstance(source, SweepSource)
    return source


def test_means_and_deviations_are_taken_over_the_seeds_of_a_method_on_a_task(
    sweep_folder: Path,
) -> None:
    summary = summarise(read_sweep(sweep_folder))
    assert [column.heading for column in summary.columns] == ["mini-rte", "mini-sst2"]
    rows = {row.label: row for row in summary.rows}
    assert list(rows) == ["full", "AdaLoRA", "BitFit"]
    cell = rows["AdaLoRA"].cells[0]
    assert cell.mean == pytest.approx(0.83)
    assert cell.deviation == pytest.approx(0.02 / 2**0.5)
    assert cell.best
    assert not rows["full"].cells[0].best
    assert [cell.flagged for cell in rows["full"].cells] == [1, 0]
    assert all(cell.mean is None for cell in rows["BitFit"].cells)


def test_the_table_shows_hundredths_and_every_warning(page: str) -> None:
    text = re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    assert '<span class="best">83.00</span> ± 1.41' in text
    assert "2 seeds" in text
    assert "the loss of step 3 is not finite" in text
    assert "one class" in text
    assert "8 runs of nano finished; 1 of them with warnings; 1 run failed" in text


def test_every_run_is_one_click_away(page: str) -> None:
    table = page[page.index('class="runs"') : page.index("Run by run")]
    targets = re.findall(r'href="#([^"]+)"', table)
    assert len(targets) == len(set(targets)) == 8
    for target in targets:
        assert page.count(f'<div id="{target}">') == 1


def test_no_two_elements_of_the_page_share_an_id_and_every_reference_is_met(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:xlink:)?href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    assert used
    assert set(used) <= set(ids)


def test_what_the_sweep_varied_besides_tells_its_rows_apart(make: Any, tmp_path: Path) -> None:
    lines = [
        make.line(f"a{index}", make.record(), "AdaLoRA", budget=budget, scale=1)
        for index, budget in enumerate((144, 288))
    ]
    summary = summarise(read_sweep(make.write_sweep(tmp_path / "sweep", lines)))
    assert {row.label for row in summary.rows} == {"AdaLoRA, budget 144", "AdaLoRA, budget 288"}


def test_both_evaluation_sets_of_a_task_have_a_column(make: Any, tmp_path: Path) -> None:
    scores = {
        "validation_matched": make.score(0.8),
        "validation_mismatched": make.score(0.7),
    }
    lines = [make.line("a", make.record(task="mnli", scores=scores), "AdaLoRA")]
    summary = summarise(read_sweep(make.write_sweep(tmp_path / "sweep", lines)))
    assert [column.heading for column in summary.columns] == ["mnli matched", "mnli mismatched"]


def test_a_run_that_failed_first_and_finished_later_is_finished(make: Any, tmp_path: Path) -> None:
    lines = [
        make.failed_line("a", "the machine went down", task="mini-sst2", method="AdaLoRA", seed=6),
        make.line("a", make.record(), "AdaLoRA"),
    ]
    sweep = read_sweep(make.write_sweep(tmp_path / "sweep", lines))
    assert len(sweep.runs) == 1
    assert not sweep.failed


def test_a_sweep_of_failures_has_a_page(make: Any, tmp_path: Path) -> None:
    lines = [make.failed_line("a", "out of memory", task="rte", method="AdaLoRA", seed=6)]
    source = make.write_sweep(tmp_path / "sweep", lines)
    text = write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")
    assert "out of memory" in text
    assert "0 runs finished; 1 run failed" in text


def test_markup_in_a_sweep_is_text(make: Any, tmp_path: Path) -> None:
    bad = "<script>window.struck=1</script>"
    lines = [
        make.line(f"a/../{bad}", make.record(task=bad), bad, budget=bad),
        make.line("b", make.record(task=bad), "AdaLoRA", budget=1),
        make.failed_line(bad, bad, task=bad, method=bad, seed=1),
    ]
    source = make.write_sweep(tmp_path / "sweep", lines, plan=bad)
    page, *files = write_report(source, tmp_path / "report")
    assert page.read_text(encoding="utf-8").count("<script>") == 1
    assert all(path.parent == tmp_path / "report" / "pictures" for path in files)


def test_a_line_still_being_written_is_left_out_and_said(make: Any, tmp_path: Path) -> None:
    source = make.write_sweep(tmp_path / "sweep", [make.line("a", make.record(), "AdaLoRA")])
    with (source / "results.jsonl").open("a") as file:
        file.write('{"id": "b", "sta')
    sweep = read_sweep(source)
    assert len(sweep.runs) == 1
    assert "cut off" in sweep.notes[0]


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": "b", "status": "finished", "record": {}}'])
def test_a_damaged_line_is_named(make: Any, tmp_path: Path, line: str) -> None:
    source = make.write_sweep(tmp_path / "sweep", [])
    good = json.dumps(make.line("a", make.record(), "AdaLoRA"))
    (source / "results.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match="line 2"):
        read_source(source)


def test_a_sweep_without_a_line_is_refused(make: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run yet"):
        read_source(make.write_sweep(tmp_path / "sweep", []))


@pytest.mark.parametrize("folder", ["../outside", "ABSOLUTE"])
def test_a_folder_outside_the_sweep_is_not_read(make: Any, tmp_path: Path, folder: str) -> None:
    outside = make.write_run(tmp_path / "outside", make.record(), make.history())
    line = make.line("a", make.record(), "AdaLoRA")
    line["folder"] = folder.replace("ABSOLUTE", str(outside))
    sweep = read_sweep(make.write_sweep(tmp_path / "sweep", [line]))
    assert not sweep.runs[0].history.log_history
    line["folder"] = "inside"
    make.write_run(tmp_path / "other" / "inside", make.record(), make.history())
    (tmp_path / "other" / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert read_sweep(tmp_path / "other").runs[0].history.log_history


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 0.5), (2, 0.6), (3, 0.55)], [(1, 0.5), (2, 0.6)]),
        ([(3, 0.9), (1, 0.9), (2, 0.8)], [(1, 0.9)]),
        ([(1, 0.4), (1, 0.5)], [(1, 0.5)]),
        ([], []),
    ],
)
def test_the_frontier_holds_what_no_cheaper_method_matches(
    points: list[tuple[float, float]], best: list[tuple[float, float]]
) -> None:
    assert frontier(points) == best

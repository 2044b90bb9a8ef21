"""The page of a sweep: the table, the pictures, every run one click away, failures in sight."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adalora.cli import main
from adalora.errors import UserError
from adalora.report import write_report
from adalora.results.history import read_traces
from adalora.results.scores import ScoreTable, focus_of, summarise
from adalora.results.sources import Sweep, read_source


@pytest.fixture(scope="module")
def page(sweep_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    return write_report(sweep_folder, folder)[0].read_text(encoding="utf-8")


def read_sweep(folder: Path) -> Sweep:
    source = read_source(folder)
    assert isinstance(source, Sweep)
    return source


def summary_of(folder: Path) -> ScoreTable:
    return summarise(read_sweep(folder))[0]


def test_means_and_deviations_are_taken_over_the_seeds_of_a_method_on_a_task(
    sweep_folder: Path,
) -> None:
    table = summary_of(sweep_folder)
    assert [column.title for column in table.all_columns] == ["mini-SST-2", "mini-RTE"]
    labels = [row.label for row in table.rows]
    assert labels == ["Full fine-tuning", "AdaLoRA 4→16", "BitFit"]
    figure = table.figures[1, "mini-RTE"]
    assert figure.mean == pytest.approx(83)
    assert figure.deviation == pytest.approx(2**0.5)
    assert table.best == {(1, "mini-SST-2"), (1, "mini-RTE")}
    assert [table.rows[0].flagged(task) for task in table.columns] == [0, 1]
    assert {row for row, _ in table.figures} == {0, 1}


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


def test_what_the_sweep_varied_else_tells_its_rows_apart(make: Any, tmp_path: Path) -> None:
    lines = [
        make.line(f"a{budget}", make.record(flags={**make.record()["flags"], **flags}), "AdaLoRA")
        for budget, flags in (
            (144, {"target_total_rank": 144}),
            (288, {"target_total_rank": 288}),
            (289, {"target_total_rank": 288, "reg_orth_coef": 0.5}),
        )
    ]
    summary = summary_of(make.write_sweep(tmp_path / "sweep", lines))
    assert {row.label for row in summary.rows} == {
        "AdaLoRA 4→144 triplets",
        "AdaLoRA 4→288 triplets",
        "AdaLoRA 4→288 triplets, reg_orth_coef=0.5",
    }


def test_both_evaluation_sets_of_a_task_have_a_column(make: Any, tmp_path: Path) -> None:
    scores = {
        "validation_matched": make.score(0.8),
        "validation_mismatched": make.score(0.7),
    }
    lines = [make.line("a", make.record(task="mnli", scores=scores), "AdaLoRA")]
    summary = summary_of(make.write_sweep(tmp_path / "sweep", lines))
    assert [column.title for column in summary.all_columns] == ["MNLI-m", "MNLI-mm"]


def test_table_and_report_show_the_same_figures_of_one_sweep(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of STS-B the mean of two correlations, of QQP both metrics: one source for both."""
    metrics = {
        "stsb": {"pearson": 0.90, "spearmanr": 0.86},
        "qqp": {"accuracy": 0.81, "f1": 0.73},
    }
    lines = [
        make.line(
            f"{task}-{seed}",
            make.record(
                task=task,
                seed=seed,
                scores={
                    "validation": {
                        **make.score(0.5),
                        "main": next(iter(of_task)),
                        "best": None,
                        "last": {name: value + seed / 100 for name, value in of_task.items()},
                    }
                },
            ),
            "AdaLoRA",
        )
        for task, of_task in metrics.items()
        for seed in (0, 2)
    ]
    source = make.write_sweep(tmp_path / "sweep", lines)
    assert main(["table", str(source), "--epoch", "last", "--format", "markdown"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "AdaLoRA 4→16" in line)
    table = re.findall(r"\d+\.\d\d±\d+\.\d\d", row)[:3]
    page = write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")
    cells = page[page.index('<table class="results">') : page.index("<tfoot>")]
    report = re.findall(r">(\d+\.\d\d)</span> ± (\d+\.\d\d)", cells)
    assert table == [f"{mean}±{deviation}" for mean, deviation in report]
    assert [one[:5] for one in table] == ["82.00", "74.00", "89.00"]


def test_own_data_of_a_sweep_are_told_apart_by_its_names_for_them(
    make: Any, tmp_path: Path
) -> None:
    lines = []
    for task, value in (("reviews", 0.8), ("letters", 0.6)):
        flags = {**make.record()["flags"], "validation_file": f"{task}/dev.csv"}
        run = make.record(task=None, flags=flags, scores={"validation": make.score(value)})
        lines.append(make.line(task, run, "AdaLoRA", task=task))
    table = summary_of(make.write_sweep(tmp_path / "sweep", lines))
    figures = {column.title: table.figures[0, column.title].mean for column in table.all_columns}
    assert figures == {"letters": pytest.approx(60), "reviews": pytest.approx(80)}


def test_a_method_is_placed_at_the_parameters_that_it_keeps(make: Any, tmp_path: Path) -> None:
    table = summary_of(make.write_sweep(tmp_path / "s", [make.line("a", make.record(), "AdaLoRA")]))
    (row,) = table.rows
    assert (table.final(row), table.initial(row)) == (25_592, 59_280)


@pytest.mark.parametrize(
    ("means", "majority", "low", "high"),
    [
        # Of the committed sweep's STS-B: one far below, one that another method dwarfs.
        ([80.9, 83.2, 82.6, 82.1, 83.3, 83.0, 68.3, 12.5], 0.0, 79.9, 84.3),
        ([60.0, 61.0, 50.0], 52.7, 59.0, 62.0),  # below the baseline
        ([53.0, 53.1, 53.2, 90.0], 52.7, 49.3, 93.7),  # the best one is never left out
        ([50.0, 52.0], 52.7, 49.0, 53.0),  # nothing works: all are shown
        ([70.0], None, 69.0, 71.0),
    ],
)
def test_a_column_is_scaled_to_the_methods_that_work(
    means: list[float], majority: float | None, low: float, high: float
) -> None:
    assert focus_of(means, majority) == pytest.approx((low, high))


def test_no_score_no_range() -> None:
    assert focus_of([], 50.0) is None


def test_what_lies_outside_is_named_in_the_picture(make: Any, tmp_path: Path) -> None:
    lines = [
        make.line(
            f"a{rank}",
            make.record(
                flags={"apply_lora": True, "lora_r": rank},
                method="LoRA",
                scores={"validation": make.score(value, majority=0.0)},
            ),
            "lora",
        )
        for rank, value in ((1, 0.81), (2, 0.82), (4, 0.82), (8, 0.1))
    ]
    source = make.write_sweep(tmp_path / "sweep", lines)
    table = summary_of(source)
    (column,) = table.all_columns
    assert [row.label for n, row in enumerate(table.rows) if table.outside(n, column)] == [
        "LoRA r=8"
    ]
    page = write_report(source, tmp_path / "report")[0].read_text(encoding="utf-8")
    assert "Outside the range of the methods that work: LoRA r=8 10.00." in page
    picture = (tmp_path / "report" / "pictures" / "pareto-1.svg").read_text(encoding="utf-8")
    assert {">10.00<", ">outside<"} <= set(re.findall(r">[^<>]*<", picture))


def test_a_run_that_failed_first_and_finished_later_is_finished(make: Any, tmp_path: Path) -> None:
    lines = [
        make.failed_line("a", "the machine went down", task="mini-sst2", method="AdaLoRA", seed=6),
        make.line("a", make.record(), "AdaLoRA"),
    ]
    sweep = read_sweep(make.write_sweep(tmp_path / "sweep", lines))
    assert len(sweep.runs) == 1
    assert not sweep.failures


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
    assert not read_traces(sweep.runs[0].folder).history.log_history
    line["folder"] = "inside"
    make.write_run(tmp_path / "other" / "inside", make.record(), make.history())
    (tmp_path / "other" / "results.jsonl").write_text(json.dumps(line) + "\n")
    assert read_traces(read_sweep(tmp_path / "other").runs[0].folder).history.log_history

"""``adalora table`` from folders to each format, and what it says where something is amiss."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from tests.tables.conftest import WriteRun, record, results_line

from adalora.cli import main
from adalora.errors import UserError
from adalora.results.differences import differences, find_row
from adalora.results.rows import rows_of
from adalora.results.sources import read_sources
from adalora.tables.grids import paper_table

DEBERTA = "microsoft/deberta-v3-base"
ENTAILMENT = np.array(["entailment", "not_entailment"])


@pytest.fixture
def runs(write_run: WriteRun, random: np.random.Generator) -> Path:
    """LoRA and AdaLoRA on RTE, two seeds, with predictions; AdaLoRA is better by a lot."""
    return write_runs(write_run, random, seeds=2)


@pytest.fixture
def three(write_run: WriteRun, random: np.random.Generator) -> Path:
    """The same with three seeds, the fewest that an interval is made from."""
    return write_runs(write_run, random, seeds=3)


def write_runs(write_run: WriteRun, random: np.random.Generator, *, seeds: int) -> Path:
    folder = Path()
    labels = random.integers(0, 2, 200)
    for method, accuracy in (("LoRA", 0.6), ("AdaLoRA", 0.9)):
        for seed in range(1, seeds + 1):
            answers = np.where(random.random(200) < accuracy, labels, 1 - labels)
            folder = write_run(
                method,
                seed=seed,
                last=float((answers == labels).mean()),
                best=0.95,
                warnings=["one_class"] if (method, seed) == ("LoRA", 2) else [],
                predictions=(ENTAILMENT[labels], ENTAILMENT[answers]),
            )
    return folder.parent


def shown(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    assert main(["table", *map(str, flags)]) == 0
    return capsys.readouterr().out


# ---- what is shown ----


def test_last_and_best_epoch_are_two_tables_and_each_says_what_it_is(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, runs)
    last, best = text.index("nano, last epoch"), text.index("nano, best epoch")
    assert "95.00±0.00" not in text[last:best]
    assert text[best:].count("95.00±0.00") == 4  # two rows, the figure and the average
    assert "n = 2; ddof = 1" in " ".join(text.split())
    assert "best epoch" not in shown(capsys, runs, "--epoch", "last")


def test_a_flagged_cell_carries_a_sign_that_is_explained(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(shown(capsys, runs, "--epoch", "last", "--format", "markdown").split())
    row = next(line for line in text.split("|") if "†" in line)
    assert "±" in row
    assert (
        "† a run of it was flagged: answers one class to everything: LoRA r=2 on RTE (seed 2)"
        in (text)
    )


def test_a_difference_has_an_interval_and_the_same_seed_gives_the_same(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (three, "--against", "lora", "--format", "csv", "--resamples", 500)
    text = shown(capsys, *flags)
    assert text == shown(capsys, *flags)
    records = list(csv.DictReader(io.StringIO(text)))
    (found,) = [one for one in records if one["table"] == "difference" and one["column"] == "RTE"]
    scores = {
        one["method"]: float(one["mean"])
        for one in records
        if one["table"] == "last" and one["column"] == "RTE"
    }
    assert found["method"] == "AdaLoRA 4→2"
    assert found["against"] == "LoRA r=2"
    assert float(found["mean"]) == pytest.approx(scores["AdaLoRA 4→2"] - scores["LoRA r=2"])
    assert 0 < float(found["low"]) < float(found["mean"]) < float(found["high"])
    assert text != shown(capsys, *flags, "--bootstrap_seed", 1)
    wide = next(
        one
        for one in csv.DictReader(io.StringIO(shown(capsys, *flags, "--level", "0.999")))
        if one["table"] == "difference"
    )
    assert float(wide["low"]) < float(found["low"])


def test_below_three_seeds_there_is_no_interval_and_no_mark(
    three: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ("--against", "lora", "--format", "markdown", "--epoch", "last")
    text = shown(capsys, three, *flags)
    assert re.search(r"\| \+\d+\.\d\d \[\+\d+\.\d\d, \+\d+\.\d\d\]! \|", text)
    assert "Banerjee (1960)" in text
    for folder in three.iterdir():
        if folder.name.endswith("-3"):
            shutil.move(folder, tmp_path / folder.name)
    text = shown(capsys, three, *flags)
    (row,) = (line for line in text.splitlines() if line.startswith("| AdaLoRA 4→2 | +"))
    assert "[" not in row
    assert "!" not in row
    assert "None is given below 3 pairs (2 here)" in text
    assert "the interval leaves out 0" not in text


def test_differences_of_f1_are_of_the_class_that_glue_means_and_averages_follow_conventions(
    write_run: WriteRun, random: np.random.Generator
) -> None:
    names = np.array(["not_duplicate", "duplicate"])
    labels = (random.random(300) < 0.3).astype(int)
    answers = {}
    for method, accuracy in (("LoRA", 0.6), ("BitFit", 0.8)):
        answers[method] = np.where(random.random(300) < accuracy, labels, 1 - labels)
        write_run(
            method,
            "qqp",
            last={"validation": {"accuracy": 0.5, "f1": 0.5}},
            predictions=(names[labels], names[answers[method]]),
        )
        folder = write_run(method, "rte", predictions=(["entailment"] * 2, ["entailment"] * 2))
    rows = rows_of(read_sources([str(folder.parent)]).runs)[0]
    baseline = find_row(rows, "lora")
    found = differences(rows, baseline, level=0.9, resamples=200, seed=0)
    f1, accuracy = (
        100 * (score(labels, answers["BitFit"]) - score(labels, answers["LoRA"]))
        for score in (f1_score, accuracy_score)
    )
    other = 1 - baseline
    assert found.cells[other, "QQP F1"].value == pytest.approx(f1)
    assert found.averages[other, "paper"].value == pytest.approx(((f1 + accuracy) / 2 + 0) / 2)
    assert found.averages[other, "later"].value == pytest.approx((accuracy + 0) / 2)


def test_without_predictions_the_scores_are_compared_and_nothing_is_marked(
    three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (three, "--against", "lora", "--format", "csv")

    def difference() -> dict[str, str]:
        lines = csv.DictReader(io.StringIO(shown(capsys, *flags)))
        return next(one for one in lines if one["table"] == "difference")

    whole = difference()
    (three / "rte-AdaLoRA-2" / "eval_predictions_rte.tsv").unlink()
    alone = difference()
    assert (whole["interval"], alone["interval"]) == ("full", "seeds alone")
    assert float(alone["mean"]) == pytest.approx(float(whole["mean"]))
    # The chance of the examples is missing from it.
    assert float(whole["low"]) < float(alone["low"]) < float(alone["mean"])
    text = shown(capsys, three, "--against", "lora", "--format", "markdown", "--epoch", "last")
    assert "]° |" in text
    assert "]! |" not in text
    assert "° predictions of a run are not there" in text


def test_runs_on_other_examples_are_not_paired(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, labels in (("LoRA", "entailment"), ("BitFit", "not_entailment")):
        folder = write_run(method, predictions=([labels] * 3, ["entailment"] * 3))
    text = " ".join(shown(capsys, folder.parent, "--against", "lora").split())
    assert "the runs were evaluated on different examples" in text


def test_parameters_are_counted_for_every_row(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, runs, "--format", "markdown")
    assert text.count("| 400 | 200 | 600 | 1,000 | 10,000 | 10.000% | 2 |") == 2


def test_the_papers_rows_stand_beside_runs_on_its_own_base_alone(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = write_run("LoRA", "cola", last={"validation": {"matthews_correlation": 0.7}},
                       base_model=DEBERTA)  # fmt: skip
    ours = write_run("BitFit", "rte")
    text = shown(capsys, theirs, "--format", "markdown", "--epoch", "last")
    assert "| AdaLoRA 4→2 0.32M (paper) | 70.04 | 70.04 |" in text
    assert "(paper)" not in shown(capsys, theirs, "--paper", "none")
    assert "(paper)" not in shown(capsys, ours)
    assert "(paper)" in shown(capsys, ours, "--paper", "table1")
    ablation = shown(capsys, ours, "--paper", "ablation", "--format", "markdown")
    assert "| AdaLoRA scored by magnitude alone | 0.65% | 95.87 | 88.00 | 70.38 |" in ablation
    assert "| AdaLoRA, coefficient 0 | 0.32% | 95.30 | 90.56 |" in ablation


def test_the_papers_averages_are_recomputed_as_it_printed_them() -> None:
    """FIELD notes: mean of eight tasks, MNLI and QQP as means of two; to its rounding."""
    printed = {"Full fine-tuning": 88.09, "BitFit": 86.02, "AdaLoRA 12→8": 89.31, "LoRA r=2": 88.15}
    for (method, _), row in paper_table("table1").rows.items():
        pairs = (row["MNLI-m"] + row["MNLI-mm"]) / 2 + (row["QQP acc"] + row["QQP F1"]) / 2
        singles = sum(row[name] for name in ("SST-2", "CoLA", "QNLI", "RTE", "MRPC", "STS-B"))
        if method in printed:
            assert (pairs + singles) / 8 == pytest.approx(printed[method], abs=0.011)


# ---- formats and files ----


def test_latex_is_a_table_that_closes_what_it_opens_and_escapes(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(capsys, runs, "--format", "latex", "--epoch", "last")
    assert text.count(r"\begin{") == text.count(r"\end{") == 4
    assert r"AdaLoRA 4$\rightarrow$2" in text
    assert "±" not in text
    assert "†" not in text
    assert r"trained/total" in text
    rows = [line for line in text.splitlines() if line.startswith(("LoRA", "AdaLoRA"))]
    assert rows
    assert all(line.endswith(r"\\") for line in rows)
    assert not any("%" in line.replace(r"\%", "") for line in text.splitlines())


@pytest.mark.parametrize(
    ("name", "begins"), [("t.md", "### nano"), ("t.tex", r"\begin{table}"), ("t.csv", "table,")]
)
def test_a_files_ending_chooses_the_format_and_a_file_that_exists_is_kept(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, begins: str
) -> None:
    path = tmp_path / name
    assert main(["table", str(runs), "-o", str(path)]) == 0
    assert path.read_text(encoding="utf-8").startswith(begins)
    path.write_text("mine")
    assert main(["table", str(runs), "-o", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "mine"
    for flag in ("--overwrite", "--force"):  # its earlier name
        path.write_text("mine")
        assert main(["table", str(runs), "-o", str(path), flag]) == 0
        assert path.read_text(encoding="utf-8").startswith(begins)


def test_a_narrow_terminal_gets_every_column_in_blocks(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for task in ("rte", "mrpc", "sst2", "qnli", "wnli"):
        folder = write_run(task=task)
    text = shown(capsys, folder.parent, "--epoch", "last")
    for title in ("RTE", "MRPC", "SST-2", "QNLI", "WNLI", "average"):
        assert title in text
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text


@pytest.mark.slow
def test_an_ascii_terminal_gets_every_sign_in_ascii(runs: Path, project_root: Path) -> None:
    """In a process of its own, whose output cannot hold the signs."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "adalora", "table", str(runs), "--against", "lora"],
        capture_output=True,
        env=environment,
        cwd=project_root,
    )
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode("ascii")
    assert "AdaLoRA 4->2" in text
    assert "+/-" in text
    assert "a) a run of it was flagged" in text


# ---- sources ----


def test_a_sweep_is_read_from_its_lines_and_a_repeated_run_counts_as_what_it_became(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = {"task": "rte", "method": "lora"}
    lines = [
        results_line("a", None, {**cell, "seed": 1}, "killed"),
        results_line("a", record(seed=1), {**cell, "seed": 1}),
        results_line("b", None, {**cell, "seed": 2}, "UserError:\n  diverged"),
        '{"id": "c", "stat',
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    found = read_sources([str(tmp_path)])
    assert [run.record.seed for run in found.runs] == [1]
    assert [(one.name, one.error) for one in found.failures] == [("b", "UserError: diverged")]
    text = shown(capsys, tmp_path / "results.jsonl", "--epoch", "last", "--format", "markdown")
    assert "50.00\\*" in text
    assert "- Failed: b: UserError: diverged" in text
    assert "line 4 is cut off" in text


def test_a_run_that_is_named_twice_counts_once(runs: Path) -> None:
    assert len(read_sources([str(runs), str(runs / "rte-LoRA-1")]).runs) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "a"}\n{"id": "b", "status": "failed"}', "line 1: not a line of a sweep"),
        (json.dumps({"id": "a", "status": "finished", "record": {}}), "line 1 lacks created"),
        (results_line("a", None, {}, "no data"), "No finished run .* failures: no data"),
        ("", "No finished run was found"),
    ],
)
def test_a_file_of_results_that_is_wrong_is_told_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "results.jsonl").write_text(content + "\n")
    with pytest.raises(UserError, match=message):
        read_sources([str(tmp_path)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["."], "holds neither results.jsonl"),
        (["RUNS", "--against", "dora"], "names no row of the table; its rows are 'AdaLoRA 4→2'"),
        (["RUNS", "--level", "95"], "95 is not between 0 and 1"),
        (["RUNS", "--epoch", "first"], "invalid choice: 'first'"),
    ],
)
def test_a_mistake_is_one_sentence(
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: list[str],
    message: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert main(["table", *(str(runs) if flag == "RUNS" else flag for flag in flags)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_baseline_that_names_two_rows_is_refused_and_a_full_label_is_not(
    write_run: WriteRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (2, 8):
        folder = write_run(folder=str(rank), flags={"lora_r": rank})
    assert main(["table", str(folder.parent), "--against", "LoRA"]) == 2
    assert "'LoRA r=2', 'LoRA r=8'; give one in full" in capsys.readouterr().err
    assert main(["table", str(folder.parent), "--against", "lora R=8"]) == 0

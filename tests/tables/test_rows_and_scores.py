"""What is averaged with what, over which tasks, and which figures are marked."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from tests.tables.conftest import record

from adalora.results.rows import Row, Spread, rows_of
from adalora.results.scores import ScoreTable, score_table
from adalora.results.sources import Failure, Run


def run(*arguments: Any, cell: dict[str, Any] | None = None, **values: Any) -> Run:
    return Run(record(*arguments, **values), None, cell or {})


def table(*runs: Run, epoch: str = "last", failures: tuple[Failure, ...] = ()) -> ScoreTable:
    return score_table(rows_of(runs, failures)[0], epoch)


def labels(rows: list[Row]) -> list[str]:
    return [row.label for row in rows]


# ---- rows ----


def test_a_row_has_a_method_and_its_size_and_seeds_are_averaged() -> None:
    rows, notes = rows_of(
        [run("LoRA", seed=seed) for seed in (3, 1)] + [run("AdaLoRA"), run("BitFit")]
    )
    assert labels(rows) == ["LoRA r=2", "AdaLoRA 4→2", "BitFit"]
    assert [one.record.seed for one in rows[0].runs["rte"]] == [1, 3]
    assert notes == []


def test_two_learning_rates_are_never_averaged_as_two_seeds() -> None:
    runs = [run(seed=seed, flags={"learning_rate": rate}) for seed, rate in ((1, 1e-3), (2, 2e-3))]
    assert labels(rows_of(runs)[0]) == [
        "LoRA r=2, learning_rate=0.001",
        "LoRA r=2, learning_rate=0.002",
    ]


def test_a_flag_that_only_some_runs_have_splits_them_too() -> None:
    runs = [run(seed=1), run(seed=2, flags={"use_rslora": True})]
    assert labels(rows_of(runs)[0]) == ["LoRA r=2", "LoRA r=2, use_rslora=True"]


def test_another_start_is_told_once_and_also_where_every_run_has_it() -> None:
    """A record's method names its start; a flag beside it would say it twice."""
    flags = {"apply_lora": True, "lora_r": 2, "lora_init": "pissa", "weight_decay": 0.1}
    flags |= {"lora_path": "run/weights"}
    runs = [run("LoRA (PiSSA)", seed=seed, flags=flags) for seed in (1, 2)]
    assert labels(rows_of(runs)[0]) == ["LoRA (PiSSA) r=2, lora_path=run/weights"]


@pytest.mark.parametrize("flag", ["root_output_dir", "logging_steps", "data_dir", "seed"])
def test_where_a_run_writes_does_not_split_it_from_its_like(flag: str) -> None:
    runs = [run(seed=seed, flags={flag: seed}) for seed in (1, 2)]
    assert labels(rows_of(runs)[0]) == ["LoRA r=2"]


def test_flags_may_differ_between_tasks_and_the_row_tells_it() -> None:
    rows, _ = rows_of(
        [run(task=task, flags={"learning_rate": rate}) for task, rate in (("rte", 1), ("cola", 2))]
    )
    assert labels(rows) == ["LoRA r=2"]
    assert rows[0].differences == {"learning_rate": {"cola": 2, "rte": 1}}


def test_a_seed_that_was_run_twice_counts_once_and_the_newest_counts() -> None:
    old = run(seed=1, last=0.1, created="2025-01-01T00:00:00+00:00")
    rows, notes = rows_of([run(seed=1, last=0.9), old, run(seed=2)])
    assert [one.record.scores["validation"]["last"]["accuracy"] for one in rows[0].all_runs] == [
        0.9,
        0.5,
    ]
    assert notes == ["LoRA r=2 on RTE: 1 of 3 runs repeat a seed; the newest of each counts."]


def test_a_base_in_a_folder_is_known_by_its_name_wherever_it_lies() -> None:
    runs = [run(seed=seed, base_model=f"/home/{seed}/MiniLM") for seed in (1, 2)]
    assert [row.base_model for row in rows_of(runs)[0]] == ["MiniLM"]


# ---- scores ----


def test_the_deviation_is_that_of_a_sample_and_one_seed_has_none() -> None:
    values = [0.5, 0.6, 0.9]
    found = table(*(run(seed=seed, last=value) for seed, value in enumerate(values)))
    figure = found.figures[0, "RTE"]
    percent = [100 * value for value in values]
    assert figure.mean == pytest.approx(statistics.mean(percent))
    assert figure.deviation == pytest.approx(statistics.stdev(percent))
    assert figure.n == 3
    assert Spread.of([4.0]) == Spread(4.0, None, 1)


def test_the_last_and_the_best_epoch_do_not_mix() -> None:
    runs = [run(seed=1, last=0.5, best=0.7), run(seed=2, last=0.6)]
    assert table(*runs).figures[0, "RTE"].n == 2
    best = table(*runs, epoch="best").figures[0, "RTE"]
    # The run that was never evaluated on the way has no best epoch, and its last one is not taken.
    assert best == Spread(pytest.approx(70), None, 1)


MNLI = {"validation_matched": {"accuracy": 0.8}, "validation_mismatched": {"accuracy": 0.9}}
QQP = {"validation": {"accuracy": 0.7, "f1": 0.5}}


def test_the_two_conventions_differ_by_mnli_and_qqp() -> None:
    found = table(run(task="mnli", last=MNLI), run(task="qqp", last=QQP), run(task="rte", last=0.6))
    assert found.averaged == ("mnli", "qqp", "rte")
    assert found.averages[0, "paper"].mean == pytest.approx((85 + 60 + 60) / 3)
    assert found.averages[0, "later"].mean == pytest.approx((80 + 70 + 60) / 3)


def test_stsb_is_the_mean_of_both_correlations_and_cola_matthews() -> None:
    found = table(
        run(task="stsb", last={"validation": {"pearson": 0.9, "spearmanr": 0.8}}),
        run(task="cola", last={"validation": {"matthews_correlation": 0.4}}),
    )
    assert found.figures[0, "STS-B"].mean == pytest.approx(85)
    assert found.figures[0, "CoLA"].mean == pytest.approx(40)


def test_an_average_is_over_the_tasks_that_every_row_has() -> None:
    found = table(
        run("LoRA", "rte", last=0.5),
        run("LoRA", "mrpc", last=0.9),
        run("BitFit", "rte", last=0.7),
    )
    assert found.averaged == ("rte",)
    assert found.averages[0, "paper"].mean == pytest.approx(50)


def test_no_common_task_no_average() -> None:
    assert table(run("LoRA", "rte"), run("BitFit", "mrpc")).averages == {}


def test_an_average_has_a_deviation_only_where_its_tasks_have_the_same_seeds() -> None:
    same = [run(task=task, seed=s, last=s / 10) for task in ("rte", "mrpc") for s in (1, 2)]
    average = table(*same).averages[0, "paper"]
    assert average.deviation == pytest.approx(statistics.stdev([10, 20]))
    other = table(*same[:-1], run(task="mrpc", seed=3, last=0.2)).averages[0, "paper"]
    assert other == Spread(pytest.approx(15), None, 2)


def test_a_flagged_run_and_a_failed_one_mark_their_cell_alone() -> None:
    cell = {"task": "rte", "method": "lora", "seed": 1}
    found = table(
        run(seed=1, warnings=["one_class", "other"], cell=cell),
        run("BitFit"),
        run(task="mrpc"),
        failures=(Failure("x", {**cell, "seed": 5}, "boom"), Failure("y", {"task": "mrpc"}, "b")),
    )
    marks = {"one_class": (1,), "failed": (5,)}
    # A failure of a cell that no run is of has a row of its own.
    assert found.marks == {(0, "rte"): marks, (2, "mrpc"): {"failed": (-1,)}}
    assert [row.label for row in found.rows] == ["LoRA r=2", "BitFit", "unnamed method"]


def test_the_users_own_data_are_named_by_their_file_and_judged_by_their_metric() -> None:
    found = table(
        run(
            task=None,
            last={"validation": {"pearson": 0.3}},
            flags={"validation_file": "a/mine.csv"},
        )
    )
    assert found.figures[0, "mine"].mean == pytest.approx(30)

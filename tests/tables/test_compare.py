"""``adalora compare``: what differs, and what came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tables.conftest import WriteRun

from adalora.cli import main
from adalora.results.sources import read_run
from adalora.tables.comparison import Section, comparison

PATTERN = {
    "bert.encoder.layer.0.attention.self.query.lora_E": 1,
    "bert.encoder.layer.1.attention.self.query.lora_E": 3,
    "bert.encoder.layer.1.intermediate.dense.lora_E": 2,
}


@pytest.fixture
def pair(write_run: WriteRun) -> tuple[Path, Path]:
    labels = ["entailment"] * 4
    other = "not_entailment"
    first = write_run(
        "LoRA", last=0.50, predictions=(labels, ["entailment", "entailment", other, other])
    )
    second = write_run(
        "AdaLoRA",
        last=0.75,
        seconds=5.5,
        rank_pattern=PATTERN,
        warnings=["one_class"],
        revision="abc",
        predictions=(labels, ["entailment", other, "entailment", "entailment"]),
    )
    return first, second


def sections(pair: tuple[Path, Path]) -> dict[str, Section]:
    return {one.title: one for one in comparison(read_run(pair[0]), read_run(pair[1]))}


def test_flags_that_are_the_same_are_not_shown(pair: tuple[Path, Path]) -> None:
    lines = {name: (a, b) for name, a, b, _ in sections(pair)["Flags"].lines}
    assert lines == {
        "apply_adalora": ("default", "True"),
        "lora_r": ("2", "4"),
        "lora_type": ("default", "svd"),
        "target_rank": ("default", "2"),
    }


def test_scores_time_and_surroundings_are_set_against_one_another(pair: tuple[Path, Path]) -> None:
    found = sections(pair)
    assert ("validation, accuracy, last epoch", "0.5000", "0.7500", "+0.2500") in found[
        "Scores"
    ].lines
    assert ("seconds", "3.50", "5.50", "+2.00") in found["Training"].lines
    assert found["Versions and hardware"].lines == (("code revision", "–", "abc", ""),)
    assert found["Warnings"].lines == (("one_class", "–", "yes", ""),)


def test_ranks_are_summed_by_kind_of_matrix(pair: tuple[Path, Path]) -> None:
    lines = {name: b for name, _, b, _ in sections(pair)["Triplets kept, by kind of matrix"].lines}
    assert lines == {"query": "4", "intermediate": "2", "all": "6"}


def test_examples_are_counted_by_which_run_is_right(pair: tuple[Path, Path]) -> None:
    lines = sections(pair)["Examples that each answers rightly"].lines
    assert lines == (
        ("validation, it alone", "1", "2", ""),
        ("validation, both; neither", "1; 0", "1; 0", ""),
    )


def test_a_run_against_itself_differs_in_nothing(pair: tuple[Path, Path]) -> None:
    found = sections((pair[0], pair[0]))
    assert found["Flags"].remark == "The same flags."
    assert found["Versions and hardware"].remark == "The same versions and hardware."
    assert not any(line[3] for section in found.values() for line in section.lines)


def test_runs_of_different_tasks_are_compared_without_their_examples(write_run: WriteRun) -> None:
    found = sections((write_run(task="rte"), write_run(task="mrpc")))
    assert found["Examples that each answers rightly"].lines == ()
    assert found["Flags"].lines == (("task_name", "rte", "mrpc", ""),)


def test_the_command_prints_every_section_and_refuses_what_is_no_run(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *map(str, pair)]) == 0
    printed = capsys.readouterr().out
    for title in sections(pair):
        assert title in printed
    assert main(["compare", str(pair[0]), str(tmp_path)]) == 2
    assert "run.json does not exist" in capsys.readouterr().err

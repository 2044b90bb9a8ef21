"""A record goes to disk and comes back as it was, and refuses what no run could have left."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adalora.errors import UserError
from adalora.results.record import RECORD_FILE, RunRecord


def test_a_record_comes_back_from_its_folder_as_it_was(make_record: Any, tmp_path: Path) -> None:
    record = make_record()
    path = record.write(tmp_path)
    assert path == tmp_path / RECORD_FILE
    assert RunRecord.read(tmp_path) == record == RunRecord.read(path)
    assert [file.name for file in tmp_path.iterdir()] == [RECORD_FILE]


def test_numbers_that_are_not_finite_are_null_in_the_file_and_nan_when_read(
    make_record: Any, values: dict[str, Any], tmp_path: Path
) -> None:
    scores = {**values["scores"]["validation"], "last": {"matthews_correlation": math.nan}}
    record = make_record(scores={"validation": scores}, train_loss=math.inf)
    text = record.write(tmp_path).read_text(encoding="utf-8")
    stored = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert stored["scores"]["validation"]["last"] == {"matthews_correlation": None}
    read = RunRecord.read(tmp_path)
    assert math.isnan(read.score("validation"))
    assert read.train_loss is None


def test_the_best_score_is_the_last_where_nothing_was_evaluated_on_the_way(
    make_record: Any, values: dict[str, Any]
) -> None:
    record = make_record()
    assert (record.score("validation"), record.score("validation", best=True)) == (0.4, 0.5)
    scores = {**values["scores"]["validation"], "best": None, "best_epoch": None}
    assert make_record(scores={"validation": scores}).score("validation", best=True) == 0.4


def test_an_older_record_names_its_model_s_scores_last_whichever_epoch_they_are_of(
    make_record: Any, values: dict[str, Any]
) -> None:
    of_the_model = values["scores"]["validation"]["last"]
    scores = make_record().scores["validation"]
    assert scores["saved"] == scores["last"] == of_the_model
    flags = {**values["flags"], "load_best_model_at_end": True}
    scores = make_record(flags=flags).scores["validation"]
    assert (scores["saved"], scores["last"]) == (of_the_model, None)


def test_names_of_a_later_version_are_passed_over(values: dict[str, Any], make_record: Any) -> None:
    assert RunRecord.from_json({**values, "carbon": 1.5}) == make_record()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format 2"),
        ("created", "yesterday", "'created' is 'yesterday'"),
        ("created", "2026-01-31T12:00:00", "expected a time"),
        ("method", "", "'method'"),
        ("task", 3, "'task' is 3"),
        ("seed", 1.5, "'seed' is 1.5"),
        ("seed", True, "'seed' is True"),
        ("steps", -1, "'steps' is -1"),
        ("command", "--task_name cola", "'command'"),
        ("seconds", "long", "'seconds' is 'long'"),
        ("peak_memory_bytes", 1.5, "'peak_memory_bytes'"),
        ("parameters", {"head": 1}, "expected counts of adapter_initial"),
        ("rank_pattern", {"x.lora_E": 5}, "keeps 5 triplets of 'x.lora_E'"),
        ("hardware", {}, "expected an object with machine"),
        ("versions", {"python": "3"}, "expected the versions"),
        ("warnings", [{"kind": "bored", "message": "x"}], "one of one_class"),
        ("scores", {"validation": {}}, "'main' on validation is None"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named_with_its_value(
    make_record: Any, field: str, value: object, message: str
) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        make_record(**{field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"last": {"accuracy": 0.5}}, "'saved' on validation"),
        ({"saved": {"matthews_correlation": 0.5}, "last": {"accuracy": 0.5}}, "'last' on validat"),
        ({"best": {"accuracy": 0.5}}, "'best' on validation"),
        ({"samples": None}, "'samples' on validation"),
        ({"majority": None}, "'majority' on validation"),
    ],
)
def test_scores_without_their_main_metric_are_refused(
    make_record: Any, values: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    scores = {**values["scores"]["validation"], **change}
    with pytest.raises(UserError, match=message):
        make_record(scores={"validation": scores})


def test_trained_parameters_are_adapter_and_head(make_record: Any, values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="459 trained parameters"):
        make_record(parameters={**values["parameters"], "trained": 459})


def test_a_folder_without_a_finished_run_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run has finished there"):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format_version": 1, "see', "cannot be read"),
        ("[1, 2]", "holds list"),
        ('{"format_version": 1}', "lacks created, method"),
    ],
)
def test_a_damaged_record_is_told_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / RECORD_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        RunRecord.read(tmp_path)


def test_a_wrong_value_names_the_file(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps({**values, "seed": "six"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"run\.json is damaged .*'seed' is 'six'"):
        RunRecord.read(tmp_path)


def test_finished_runs_are_read_and_shown_without_torch() -> None:
    rooms = ("results.sources", "tables.render", "tables.comparison", "report.page")
    program = f"import sys, {', '.join(f'adalora.{room}' for room in rooms)}; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "adalora.report.page" in imported
    assert not imported & {"torch", "transformers", "datasets"}

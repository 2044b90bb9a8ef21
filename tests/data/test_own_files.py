"""The user's own files: five formats read alike, and each mistake is told in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from adalora.errors import UserError
from adalora.glue.load import DataSource, TaskData, load_data

ROWS: list[dict[str, Any]] = [
    {"text": 'She said "no", twice', "label": "spam"},
    {"text": "None", "label": "ham"},
    {"text": "line one\nline two", "label": "ham"},
    {"text": "a\ttab and NA", "label": "spam"},
]
WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "csv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False),
    "tsv": lambda path, rows: pd.DataFrame(rows).to_csv(path, index=False, sep="\t"),
    "json": lambda path, rows: path.write_text(json.dumps(rows)) and None,
    "jsonl": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))) and None,
    "parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path),
}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    WRITERS[path.suffix[1:]](path, rows)
    return str(path)


def load(train: str, validation: str | None = None, **kwargs: Any) -> TaskData:
    return load_data(DataSource(train_file=train, validation_file=validation or train, **kwargs))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    data = load(write(tmp_path, f"train.{kind}", ROWS))
    assert (data.sentence1_key, data.sentence2_key) == ("text", None)
    assert data.labels == ("ham", "spam")
    assert list(data.splits["train"]["text"]) == [row["text"] for row in ROWS]
    assert list(data.splits["train"]["label"]) == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(map(json.dumps, ROWS)),
        json.dumps({"data": ROWS}),
        "\ufeff" + json.dumps(ROWS),
    ],
)
def test_json_in_the_forms_that_occur_in_the_wild(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.json"
    path.write_text(content, encoding="utf-8")
    assert list(load(str(path)).splits["train"]["text"]) == [row["text"] for row in ROWS]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
@pytest.mark.parametrize(
    ("values", "names", "indices"),
    [
        ([3, 1, 3, 1], ("1", "3"), [1, 0, 1, 0]),
        ([10, 9, 9, 10], ("9", "10"), [1, 0, 0, 1]),
        (["yes", "no", "no", "yes"], ("no", "yes"), [1, 0, 0, 1]),
        ([True, False, False, True], ("False", "True"), [1, 0, 0, 1]),
        ([0.5, 1.0, -2.0, 4.25], None, [0.5, 1.0, -2.0, 4.25]),
    ],
)
def test_labels_of_every_type(
    tmp_path: Path, kind: str, values: list[Any], names: tuple[str, ...] | None, indices: list[Any]
) -> None:
    rows = [{"text": f"text {i}", "label": value} for i, value in enumerate(values)]
    data = load(write(tmp_path, f"train.{kind}", rows))
    assert data.labels == names
    assert data.num_labels == (1 if names is None else len(names))
    assert list(data.splits["train"]["label"]) == indices


def test_the_text_columns_are_the_tasks_or_those_of_a_plain_name(tmp_path: Path) -> None:
    def columns(task: str | None, **cells: str) -> tuple[str, str | None]:
        rows = [{"id": "7", **cells, "label": label} for label in ("0", "1")]
        data = load(write(tmp_path, "train.csv", rows), task_name=task)
        return data.sentence1_key, data.sentence2_key

    both = {"extra": "x", "hypothesis": "b", "premise": "a"}
    assert columns("mnli", **both) == ("premise", "hypothesis")
    assert columns(None, **both) == ("premise", "hypothesis")
    assert columns(None, extra="x", sentence2="b", sentence1="a") == ("sentence1", "sentence2")
    assert columns(None, only="x") == ("only", None)


def test_a_glue_task_keeps_its_label_order_whatever_the_files_hold(tmp_path: Path) -> None:
    for written in (["not_entailment", "entailment"], [1, 0]):
        rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in written]
        data = load(write(tmp_path, "train.csv", rows), task_name="rte")
        assert data.labels == ("entailment", "not_entailment")
        assert list(data.splits["train"]["label"]) == [1, 0]


def test_a_test_file_needs_no_labels_and_those_it_has_are_not_looked_at(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", ROWS)
    for label in ("never seen", ""):
        test = write(tmp_path, "test.csv", [{"text": "new", "label": label}])
        data = load(train, test_file=test)
        assert data.splits["test"][0] == {"text": "new", "label": -1, "idx": 0}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.txt", "text", "ends in '.txt'"),
        ("train.csv", "text,label\n", "holds no examples"),
        ("train.csv", "", "is empty; a row with the names"),
        ("train.csv", "text,label\na,1\n,b,2,3\n", "line 3: 4 columns, where the header has 2"),
        (
            "train.csv",
            "text,spam\na,1\n",
            "no column 'label', nor another that is plainly the label",
        ),
        ("train.csv", "label,idx\n1,0\n0,1\n", "has no column of text"),
        ("train.csv", "text,label\na,1\nb,\n", "line 3: the label is missing"),
        ("train.csv", "text,label\na,x\nb,x\n", "every label is 'x'"),
        ("train.json", '{"text": 1', "not JSON"),
        ("train.json", '[{"text": "a", "label": null}]', "the label is missing (None)"),
        ("train.json", '[{"text": null, "label": 0}, {"text": "a", "label": 1}]', "line 1"),
        ("train.json", '[{"text": "a", "label": 0}, {"text": "a", "label": "x"}]', "partly"),
        ("train.json", "[1, 2]", "is no JSON object; each example is one"),
        ("train.jsonl", '{"text": "a", "label": 0}\n{"text"\n', "line 2: not JSON"),
        ("train.parquet", "no parquet", "could not be read as parquet"),
    ],
)
def test_each_mistake_is_told_in_a_sentence(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b"text,label\ngood,1\ncaf\xe9,0\n")
    with pytest.raises(UserError, match="UTF-8"):
        load(str(path))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.csv' does not exist"):
        load(str(tmp_path / "absent.csv"))


def test_a_validation_file_must_fit_the_training_file(tmp_path: Path) -> None:
    train = write(tmp_path, "train.csv", ROWS)
    unknown = write(tmp_path, "unknown.csv", [{"text": "a", "label": "eggs"}])
    with pytest.raises(UserError, match=r"'eggs' does not occur in training; .* ham, spam"):
        load(train, unknown)
    other = write(tmp_path, "other.csv", [{"words": "a", "label": "ham"}])
    with pytest.raises(UserError, match="no column 'text', which the training file has"):
        load(train, other)
    words = write(tmp_path, "words.csv", [{"text": "a", "label": "high"}])
    numbers = write(tmp_path, "numbers.csv", [{"text": "a", "label": x} for x in (0.5, 1.5)])
    with pytest.raises(UserError, match="the label 'high' is no number"):
        load(numbers, words)

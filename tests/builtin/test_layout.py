"""The miniature on disk reads back, by a plain csv reader, as what was generated."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Glue

from adalora.builtin.miniature import MINI_TASKS, generate, splits_of, write_tsv

#: Task -> (folder, text columns, their places, place of the label, names of the classes). Written
#: from the official download, where the test files of CoLA, SST-2 and QQP have places of their own.
PLACES: dict[str, tuple[str, tuple[str, ...], tuple[int, ...], int, tuple[str, ...]]] = {
    "cola": ("CoLA", ("sentence",), (3,), 1, ("0", "1")),
    "sst2": ("SST-2", ("sentence",), (0,), 1, ("0", "1")),
    "mrpc": ("MRPC", ("sentence1", "sentence2"), (3, 4), 0, ("0", "1")),
    "stsb": ("STS-B", ("sentence1", "sentence2"), (7, 8), 9, ()),
    "qqp": ("QQP", ("question1", "question2"), (3, 4), 5, ("0", "1")),
    "mnli": (
        "MNLI",
        ("premise", "hypothesis"),
        (8, 9),
        -1,
        ("entailment", "neutral", "contradiction"),
    ),
    "qnli": ("QNLI", ("question", "sentence"), (1, 2), 3, ("entailment", "not_entailment")),
    "rte": ("RTE", ("sentence1", "sentence2"), (1, 2), 3, ("entailment", "not_entailment")),
    "wnli": ("WNLI", ("sentence1", "sentence2"), (1, 2), 3, ("0", "1")),
    "ax": ("diagnostic", ("premise", "hypothesis"), (1, 2), -1, ()),
}
#: Task -> split -> the first line of the official file.
OFFICIAL_HEADERS: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "glue_headers.json").read_text(encoding="utf-8")
)
TEST_PLACES = {"cola": (1,), "sst2": (1,), "qqp": (1, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target: Path = tmp_path_factory.mktemp("glue")
    write_tsv(target)
    return target


def read(file: Path) -> list[list[str]]:
    with open(file, encoding="utf-8-sig", newline="") as stream:
        return list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def file_of(folder: Path, task: str, split: str) -> Path:
    name = "diagnostic" if task == "ax" else split.replace("validation", "dev")
    return folder / PLACES[task][0] / f"{name}.tsv"


CASES = [(task, split) for task in MINI_TASKS for split in splits_of(task)]


@pytest.mark.parametrize(("task", "split"), CASES)
def test_what_is_written_reads_back(folder: Path, task: str, split: str) -> None:
    _, columns, places, label_place, names = PLACES[task]
    is_test = split.startswith("test")
    lines = read(file_of(folder, task, split))
    if task != "cola" or is_test:
        lines = lines[1:]
    rows = generate(task, split)
    assert len(lines) == len(rows)
    if is_test:
        places = TEST_PLACES.get(task, places)
    for line, row in zip(lines, rows, strict=True):
        assert [line[place] for place in places] == [row[column] for column in columns]
        if is_test:
            assert line[0] == str(row["idx"])
        elif task == "stsb":
            assert float(line[label_place]) == row["label"]
        else:
            assert line[label_place] == names[row["label"]]


@pytest.mark.parametrize(("task", "split"), CASES)
def test_every_line_of_a_file_has_as_many_cells(folder: Path, task: str, split: str) -> None:
    assert len({len(line) for line in read(file_of(folder, task, split))}) == 1


def test_quirks_of_the_download_are_kept(folder: Path) -> None:
    assert read(folder / "CoLA" / "train.tsv")[0][0] == "gj04"
    assert read(folder / "CoLA" / "test.tsv")[0] == ["index", "sentence"]
    for name in ("train.tsv", "dev.tsv"):
        start = (folder / "MRPC" / name).read_bytes()
        assert start.startswith("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n".encode())
    assert read(folder / "QQP" / "test.tsv")[0] == ["id", "question1", "question2"]
    header = read(folder / "MNLI" / "train.tsv")[0]
    assert (header[8], header[9], header[-1]) == ("sentence1", "sentence2", "gold_label")


HEADERS = [(task, split) for task, splits in OFFICIAL_HEADERS.items() for split in splits]


@pytest.mark.parametrize(("task", "split"), HEADERS)
def test_headers_are_those_of_the_official_files(
    folder: Path, glue: Glue, task: str, split: str
) -> None:
    assert read(file_of(folder, task, split))[0] == OFFICIAL_HEADERS[task][split]
    # Where the files are at hand, that they say so.
    assert read(file_of(glue.folder, task, split))[0] == OFFICIAL_HEADERS[task][split]


def test_only_the_tasks_asked_for_are_written(tmp_path: Path) -> None:
    write_tsv(tmp_path, ["rte"])
    written: Any = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.tsv"))
    assert written == ["RTE/dev.tsv", "RTE/test.tsv", "RTE/train.tsv"]

"""A run goes on from a checkpoint of the same data, wherever it lies, and never of other data."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tests.models import tiny_classifier
from tests.program import run_program

from adalora.glue.load import TaskData
from adalora.pretrained.loading import load_tokenizer
from adalora.storage.snapshots import MANIFEST
from adalora.training.checkpointing.settings import data_settings

ROWS = [("a good film", "yes"), ("a bad film", "no"), ("not good", "no"), ("not bad", "yes")]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("\n".join(["text,label", *(",".join(row) for row in rows)]) + "\n")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("base")
    tiny_classifier("bert", vocab_size=681, num_hidden_layers=1).save_pretrained(folder)
    load_tokenizer("nano").save_pretrained(folder)
    return folder


def start(root: Path, base: Path, file: Path, *more: object, expect: int = 0) -> Any:
    return run_program(
        *("--model_name_or_path", base, "--train_file", file, "--do_train", "--max_steps", "2"),
        *("--per_device_train_batch_size", "2", "--max_seq_length", "16", "--save_steps", "2"),
        *("--apply_lora", "--lora_module", "query", "--lora_r", "1", "--root_output_dir", root),
        *("--report_to", "none", "--disable_tqdm", "True", *more),
        expect=expect,
    )


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's root, not to be changed, with the file that it was trained on."""
    root: Path = tmp_path_factory.mktemp("finished") / "run"
    start(root, base, write(root.with_name("train.csv"), ROWS))
    return root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in (root / "model").rglob("*")
        if path.is_file()
    }


def change(edit: Callable[[list[tuple[str, str]]], Any]) -> list[tuple[str, str]]:
    rows = list(ROWS)
    edit(rows)
    return rows


OTHER = {
    "a text": change(lambda rows: rows.__setitem__(0, ("a good book", "yes"))),
    "a label": change(lambda rows: rows.__setitem__(0, (rows[0][0], "no"))),
    "the order": change(lambda rows: rows.reverse()),
    "a row more": change(lambda rows: rows.append(("good", "yes"))),
    "a row less": change(lambda rows: rows.pop()),
}


@pytest.mark.parametrize("name", list(OTHER))
def test_the_same_command_on_changed_data_changes_nothing(run, base, tmp_path, name):
    before = contents(run)
    file = write(tmp_path / "train.csv", OTHER[name])
    done = start(run, base, file, expect=2)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert "checkpoint-2 is of a run with other training data (" in line
    assert "training_data: there 4 examples, sha256 " in line
    assert "--overwrite_output_dir" in line
    assert "--force_resume" in line
    assert contents(run) == before


def test_a_file_that_was_moved_is_the_same_data(run, base, tmp_path):
    start(run, base, write(tmp_path / "elsewhere.csv", ROWS))


def test_the_flags_named_do_what_the_sentence_says(run, base, tmp_path):
    file = write(tmp_path / "train.csv", OTHER["a text"])
    start(run, base, file, "--force_resume")
    start(run, base, file, "--overwrite_output_dir")
    start(run, base, file)  # now these are its own data


@pytest.mark.parametrize("names", [("good", "bad"), ("no", "yes ", "maybe")])
def test_other_classes_are_not_continued_even_by_force(run, base, tmp_path, names):
    rows = [(text, names[index % len(names)]) for index, (text, _) in enumerate(ROWS)]
    file, before = write(tmp_path / "train.csv", rows), contents(run)
    done = start(run, base, file, "--force_resume", expect=2)
    assert "is of a run on other classes (classes: there ['no', 'yes'], here" in done.stderr
    assert "--lora_path" in done.stderr
    assert contents(run) == before


def test_another_tokenizer_of_the_same_name_is_noticed(run, base, tmp_path):
    file = write(tmp_path / "train.csv", ROWS)
    kept = (base / "tokenizer.json").read_text()
    values = json.loads(kept)
    vocabulary = values["model"]["vocab"]
    vocabulary[100], vocabulary[101] = vocabulary[101], vocabulary[100]
    try:
        (base / "tokenizer.json").write_text(json.dumps(values))
        done = start(run, base, file, expect=2)
    finally:
        (base / "tokenizer.json").write_text(kept)
    assert "is of a run with another tokenizer (tokenizer: there sha256 " in done.stderr
    assert "training_data" not in done.stderr


def test_a_checkpoint_that_noted_no_digest_is_resumed(run, base, tmp_path):
    manifest = run / "model" / "checkpoint-2" / MANIFEST
    values = json.loads(manifest.read_text())
    for name in ("training_data", "classes", "tokenizer"):
        del values["settings"][name]
    manifest.write_text(json.dumps(values))
    file = write(tmp_path / "train.csv", ROWS)
    assert "train_file: there" in start(run, base, file, expect=2).stderr
    values["settings"]["train_file"] = str(file)
    manifest.write_text(json.dumps(values))
    start(run, base, file)


# --- the digest -----------------------------------------------------------------------------------


def task_data(rows: list[tuple[str, str]], *, shuffled: bool = False) -> TaskData:
    names = ["no", "yes"]
    features = Features(
        {"text": Value("string"), "label": ClassLabel(names=names), "idx": Value("int32")}
    )
    order = list(range(len(rows)))
    stored = order[::-1] if shuffled else order
    columns = {
        "text": [rows[index][0] for index in stored],
        "label": [names.index(rows[index][1]) for index in stored],
        "idx": stored,
    }
    split = Dataset.from_dict(columns, features=features)
    if shuffled:
        split = split.select(order[::-1])
    return TaskData(DatasetDict(train=split), None, "text", None, tuple(names), (), (), "here")


def digest(data: TaskData, samples: int | None = None) -> Any:
    return data_settings(data, load_tokenizer("nano"), samples)["training_data"]


def test_the_digest_is_of_the_rows_and_not_of_how_they_are_stored():
    assert digest(task_data(ROWS)) == digest(task_data(ROWS, shuffled=True))
    assert digest(task_data(ROWS), 2) == digest(task_data(ROWS[:2]))
    assert digest(task_data(ROWS)).startswith("4 examples, sha256 ")
    assert (
        len({digest(task_data(rows)) for rows in OTHER.values()} | {digest(task_data(ROWS))}) == 6
    )


def test_no_two_cells_run_into_each_other():
    pairs = [("a", "b c"), ("a b", "c")]
    features = Features({"one": Value("string"), "two": Value("string"), "label": Value("float32")})
    found = set()
    for one, two in pairs:
        split = Dataset.from_dict({"one": [one], "two": [two], "label": [0.5]}, features=features)
        data = TaskData(DatasetDict(train=split), None, "one", "two", None, (), (), "here")
        found.add(digest(data))
    assert len(found) == 2


def test_a_million_rows_would_take_seconds():
    data = task_data([("a text of some words", "yes")] * 50_000)
    begun = time.process_time()
    digest(data)
    assert time.process_time() - begun < 1.0  # some 0.1 s

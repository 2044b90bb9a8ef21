"""Which source is taken, what happens without a network, and what guessing the majority gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from adalora.builtin.miniature import write_tsv
from adalora.errors import UserError
from adalora.glue import load as load_module
from adalora.glue.load import DataSource, load_data


def test_the_folder_goes_before_files_and_files_before_the_miniature(tmp_path: Path) -> None:
    write_tsv(tmp_path, ["rte"])
    own = tmp_path / "own.csv"
    own.write_text("sentence1,sentence2,label\na,b,entailment\na,c,not_entailment\n")
    files = {"train_file": str(own), "validation_file": str(own)}
    every = DataSource(task_name="mini-rte", data_dir=str(tmp_path), **files)
    assert load_data(every).origin == f"the folder {tmp_path}"
    assert load_data(DataSource(task_name="mini-rte", **files)).origin == f"{own}, {own}"
    assert load_data(DataSource(task_name="mini-rte")).origin == "the built-in miniature of rte"


WAYS = ("--data_dir", "--train_file", "--validation_file", "mini-rte")


def test_without_a_network_one_sentence_names_the_three_ways(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="switched off and the data not cached") as caught:
        load_data(DataSource(task_name="rte", cache_dir=str(tmp_path)))
    assert [way for way in WAYS if way not in str(caught.value)] == []


@pytest.mark.slow
def test_the_datasets_librarys_own_variable_switches_it_off_as_well(tmp_path: Path) -> None:
    # In a process of its own: it is read when the library is imported.
    program = (
        "from adalora.errors import exit_with_message\n"
        "from adalora.glue.load import DataSource, load_data\n"
        "import sys\n"
        "sys.exit(exit_with_message(lambda: load_data(DataSource(task_name='rte')) and None))\n"
    )
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert "Traceback" not in done.stderr
    assert [way for way in WAYS if way not in said[0]] == []


def test_nothing_named_and_a_folder_without_a_task_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No data was named"):
        DataSource()
    with pytest.raises(UserError, match="needs --task_name"):
        DataSource(data_dir=str(tmp_path), train_file="train.csv")


def test_a_split_that_the_run_needs_and_the_data_lack_is_named(tmp_path: Path) -> None:
    write_tsv(tmp_path, ["rte"])
    (tmp_path / "RTE" / "train.tsv").unlink()
    source = {"task_name": "rte", "data_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"--do_train needs train data, .* has validation, test"):
        load_data(DataSource(**source))
    assert "train" not in load_data(DataSource(**source, need=("validation",))).splits
    with pytest.raises(UserError, match="--do_train needs train data"):
        load_data(DataSource(task_name="mini-ax"))
    assert load_data(DataSource(task_name="mini-ax", need=("test",))).test_splits == ("test",)
    own = tmp_path / "test.csv"
    own.write_text("text\na\n")
    with pytest.raises(UserError, match="Only a test file was given"):
        load_data(DataSource(test_file=str(own), need=("test",)))


def test_the_diagnostic_set_is_predicted_with_mnli_where_it_is(tmp_path: Path) -> None:
    assert "ax" not in load_data(DataSource(task_name="mini-mnli")).splits
    mini = load_data(DataSource(task_name="mini-mnli", need=("test",)))
    assert mini.test_splits == ("test_matched", "test_mismatched", "ax")
    write_tsv(tmp_path, ["mnli"])
    folder = DataSource(task_name="mnli", data_dir=str(tmp_path), need=("test",))
    assert load_data(folder).test_splits == ("test_matched", "test_mismatched")
    write_tsv(tmp_path, ["ax"])
    assert load_data(folder).splits["ax"].num_rows == 200


def test_the_majority_score_is_the_main_metric_of_one_answer(tmp_path: Path) -> None:
    def write(name: str, labels: list[str]) -> str:
        path = tmp_path / name
        path.write_text("text,label\n" + "".join(f"t{i},{x}\n" for i, x in enumerate(labels)))
        return str(path)

    train, validation = write("train.csv", ["b", "b", "a"]), write("dev.csv", ["a", "b", "a", "a"])
    data = load_data(DataSource(train_file=train, validation_file=validation))
    # The training set's majority is b, of which the validation set has one in four.
    assert data.majority_score("validation") == pytest.approx(0.25)
    # Of as many examples as are evaluated, --max_val_samples.
    assert data.majority_score("validation", 2) == pytest.approx(0.5)
    assert data.majority_score("validation", 1) == 0
    assert load_data(DataSource(task_name="mini-cola")).majority_score("validation") == 0
    assert load_data(DataSource(task_name="mini-stsb")).majority_score("validation") == 0
    # Own numbers are judged by their correlation as well, which one answer has none of.
    train, validation = write("a.csv", ["0.5", "1.5"]), write("b.csv", ["0.5", "2.5"])
    own = load_data(DataSource(train_file=train, validation_file=validation))
    assert own.is_regression
    assert own.majority_score("validation") == 0


@pytest.mark.parametrize("wrong", [-1, 2])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_label_that_is_none_is_refused_where_one_is_needed(
    split: str, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SNLI and others mark what their annotators did not agree on; a test set is all of -1."""
    content = {"sentence1": ["a"] * 3, "sentence2": ["b"] * 3, "idx": [0, 1, 2]}
    splits = {
        name: Dataset.from_dict({**content, "label": [0, wrong if name == split else 1, 0]})
        for name in ("train", "validation", "test")
    }
    monkeypatch.setattr(load_module, "load_dataset", lambda *_, **__: DatasetDict(splits))
    source = DataSource(task_name="rte")
    if split == "test":
        assert load_data(source).num_labels == 2
    else:
        message = (
            rf"1 of 3 examples of the {split} split have no label, the first in row 2 \({wrong};"
        )
        with pytest.raises(UserError, match=message):
            load_data(source)
        other = "validation" if split == "train" else "train"
        assert load_data(DataSource(task_name="rte", need=(other,))).num_labels == 2

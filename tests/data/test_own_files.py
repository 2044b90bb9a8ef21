"""The user's own files: five formats read alike, and each mistake is told in a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tests.program import run_program

from adalora.builtin.miniature import write_tsv
from adalora.cli import main
from adalora.data import stored_rows
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


# --- what the files say by themselves -------------------------------------------------------------


def parquet(path: Path, labels: list[int], names: list[str] | None = None) -> str:
    """A file as the data sets library writes it, with names of the classes in its schema."""
    kind = ClassLabel(names=names) if names else Value("int64")
    texts = [f"text {number}" for number in range(len(labels))]
    Dataset.from_dict(
        {"text": texts, "label": labels}, features=Features(text=Value("string"), label=kind)
    ).to_parquet(path)
    return str(path)


def test_a_schema_names_the_classes_and_minus_one_is_none_of_them(tmp_path: Path) -> None:
    train = parquet(tmp_path / "train.parquet", [1, -1, 0, 2, -1], ["yes", "no", "perhaps"])
    # The same names in another order, and words in a form that has no schema.
    other = parquet(tmp_path / "dev.parquet", [0, 1], ["no", "yes"])
    data = load(train, other)
    assert data.labels == ("yes", "no", "perhaps")
    assert list(data.splits["train"]["label"]) == [1, 0, 2]
    assert list(data.splits["train"]["text"]) == ["text 0", "text 2", "text 3"]
    assert list(data.splits["validation"]["label"]) == [1, 0]
    assert "2 more have no label (-1) and are left out" in data.understood.files[0].notes
    words = write(tmp_path, "dev.csv", [{"text": "a", "label": "perhaps"}])
    assert list(load(train, words).splits["validation"]["label"]) == [2]


def test_minus_one_is_a_class_where_nothing_says_otherwise(tmp_path: Path) -> None:
    data = load(parquet(tmp_path / "train.parquet", [1, -1, 0]))
    assert data.labels == ("-1", "0", "1")
    assert "-1 is a class like the others" in data.understood.notes
    rows = [{"sentence": "a", "label": label} for label in (0, -1, 1)]
    task = load(write(tmp_path, "task.csv", rows), task_name="sst2")
    assert list(task.splits["train"]["label"]) == [0, 1]
    unlabelled = write(tmp_path, "none.csv", rows[1:2])
    with pytest.raises(UserError, match="no examples: the label of all 1 rows is -1"):
        load(unlabelled, task_name="sst2")


@pytest.mark.parametrize("task", ["mrpc", "stsb", "qnli", "rte", "wnli", "cola", "ax"])
def test_glues_official_files_point_to_their_folder(tmp_path: Path, task: str) -> None:
    write_tsv(tmp_path, [task])
    for path in tmp_path.rglob("*.tsv"):
        if task == "cola" and path.stem == "test":
            continue
        with pytest.raises(UserError, match="--data_dir FOLDER, which reads it as it is meant"):
            load(str(path))


@pytest.mark.parametrize(
    "header",
    [
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence1\tgold_label",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    ],
)
def test_the_large_official_files_do_too(tmp_path: Path, header: str) -> None:
    (tmp_path / "train.tsv").write_text(f"{header}\n" + "\t".join(header.split("\t")) + "\n")
    with pytest.raises(UserError, match=r"laid out as the official (MNLI|QQP) of GLUE"):
        load(str(tmp_path / "train.tsv"))


def test_many_rows_are_kept_in_a_file_that_is_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_rows, "_MOST_IN_MEMORY", 1000)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(2500)]
    split = load(write(tmp_path, "train.csv", rows)).splits["train"]
    assert list(split["text"]) == [row["text"] for row in rows]
    assert list(split["label"]) == [n % 2 for n in range(2500)]
    assert split[2499] == {"text": "text 2499", "label": 1, "idx": 2499}
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_same_content_has_the_same_fingerprint(tmp_path: Path) -> None:
    def fingerprint(name: str, rows: list[dict[str, Any]]) -> str:
        return str(load(write(tmp_path, name, rows)).splits["train"]._fingerprint)

    first = fingerprint("a.csv", ROWS)
    assert fingerprint("b.jsonl", ROWS) == first
    assert fingerprint("c.csv", ROWS[::-1]) != first
    assert fingerprint("d.csv", [*ROWS[:-1], {**ROWS[-1], "label": "ham"}]) != first


# --- the page -------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json"])
def test_the_pages_example_of_each_form_is_read(tmp_path: Path, form: str) -> None:
    (content,) = re.findall(rf"```{form}\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / f"a.{form}").write_text(content)
    data = load(str(tmp_path / f"a.{form}"))
    assert list(data.splits["train"]["text"]) == ['She said "no", twice', "None"]
    assert data.labels == ("ham", "spam")


def numbered(labels: list[str]) -> bytes:
    return "\n".join(["text,label", *(f"t{n},{x}" for n, x in enumerate(labels))]).encode()


#: In the order of the page's table.
REFUSED: list[tuple[str, bytes]] = [
    ("a.csv", b"text,label\na,1\nb,c,0\n"),
    ("a.tsv", b"text\tlabel\nin\ntwo\t1\n"),
    ("a.csv", b'text,label\n"open,1\nb,0\n'),
    ("a.csv", b'text,label\na,0\n"b,1\nc",0\n'),
    ("a.csv", b'text,label\n"a"b,1\n'),
    ("a.csv", "text,label\ncaf\xe9,1\n".encode("latin-1")),
    ("a.csv", b"text,label\na\0,1\n"),
    ("a.json", b'[{"text": 1'),
    ("a.csv", b"text,text,label\na,b,1\n"),
    ("a.csv", b"keyword,location,label\na,b,1\n"),
    ("a.csv", b"text,spam\na,1\n"),
    ("a.csv", b"text,score,sentiment\na,1,b\n"),
    ("dev.csv", b"words,label\na,ham\n"),
    ("a.csv", numbered(["1", ""])),
    ("dev.csv", numbered(["eggs"])),
    ("a.csv", numbered(["0", "1", "n/a"])),
    ("a.csv", numbered(["true", "0"])),
    ("a.csv", numbered(["pos", "neg", " pos "])),
    ("a.csv", b"text;label\na;0,5\nb;0,7\n"),
    ("a.csv", numbered(["1", "2", "1.0"])),
    ("a.csv", numbered([f"w{n}" for n in range(30)])),
    ("a.jsonl", b'{"text": "t", "label": ["a", "b"]}\n'),
    ("a.csv", numbered(["x", "x"])),
    ("a.tsv", b"Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t2\t3\ta\tb\n"),
]


def test_every_refusal_of_the_page_is_made_in_its_words(tmp_path: Path) -> None:
    table = PAGE[PAGE.index("| the file | the sentence |") :]
    sentences = re.findall(r"^\| [^|]* \| `(.*)` \|$", table, re.MULTILINE)
    assert len(sentences) == len(REFUSED)
    train = write(tmp_path, "train.csv", ROWS)
    for (name, content), sentence in zip(REFUSED, sentences, strict=True):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load(train, str(path)) if name == "dev.csv" else load(str(path))
        assert sentence in str(caught.value)
        assert str(path) in str(caught.value)


# --- through the command line ---------------------------------------------------------------------

SHORT = (
    *("--model_name_or_path", "nano", "--apply_bitfit", "--do_train", "--do_eval", "--do_predict"),
    *("--max_steps", "1", "--max_seq_length", "16", "--report_to", "none", "--disable_tqdm", "1"),
    *("--per_device_train_batch_size", "4", "--save_strategy", "no"),
)


@pytest.mark.parametrize(
    ("name", "content", "flags", "says"),
    [
        (
            "tweets.csv",
            ',id,keyword,text,target\n0,7,,so sunny,1\n1,8,fire,a fire,0\n2,9,,"a, b",1\n',
            (),
            [r"3 rows of .*tweets.csv", "'text'", "'target'", r"\(nameless\), 'id', 'keyword'"],
        ),
        (
            "export.csv",
            "Titel;Inhalt;Klasse\ngut, ja;schön;1.0\nschlecht;übel;2.0\n",
            ("--text_column", "Titel", "--pair_column", "Inhalt", "--label_column", "Klasse"),
            ["by semicolons", "'Titel' and 'Inhalt'", "the labels 1.0, 2.0 are whole and few"],
        ),
        (
            "quotes.tsv",
            'sentence\tlabel\n"I came.\t007\nI conquered."\t7\n',
            ("--no_quotes",),
            ["2 rows of", r"2 classes: 007 \(1\), 7 \(1\)"],
        ),
        (
            "scores.jsonl",
            '{"text": "a", "score": 1}\n{"text": "b", "score": 3}\n{"text": "c", "score": 2}\n',
            ("--task_type", "regression"),
            ["regression: --task_type regression; from 1 to 3"],
        ),
    ],
)
def test_a_file_goes_through_training_evaluation_and_prediction(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    flags: tuple[str, ...],
    says: list[str],
) -> None:
    path, root = tmp_path / name, tmp_path / "run"
    path.write_text(content, encoding="utf-8")
    files = [f"--{kind}_file={path}" for kind in ("train", "validation", "test")]
    done = run_program(*SHORT, *files, *flags, "--root_output_dir", root)
    said = " ".join(done.stdout.split())
    for one in says:
        assert re.search(one, said), said
    record = json.loads((root / "run.json").read_text())
    described = json.loads((root / "model" / "adalora.json").read_text())
    assert described["data"] == record["data"]
    rows = record["data"]["files"][0]["rows"]
    answers = (root / "test_results_custom.txt").read_text().splitlines()[1:]
    assert len(answers) == rows
    # The model knows its columns; how the file is written it is told again.
    again = [flag for flag in flags if flag == "--no_quotes"]
    assert main(["eval", str(root), "--validation_file", str(path), *again]) == 0
    assert main(["predict", str(root), str(path), *again]) == 0
    written = capsys.readouterr()
    assert written.out.count("\n") > rows
    # Lines end where a terminal does.
    told = " ".join(written.err.split())
    for column in described["text_columns"]:
        assert told.count(repr(column)) == 2
    assert told.count(f"{rows} rows of {path}") == 2

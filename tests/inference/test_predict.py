"""``adalora predict``: every form in, every form out, in order, and nothing lost on the way."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import resource
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adalora
from adalora.builtin.miniature import generate
from adalora.cli import main
from adalora.data.table_reader import Texts, open_table
from adalora.inference.classifier import Prediction
from adalora.inference.output import writer
from adalora.storage.atomic import atomic_write

ROWS = [(row["premise"], row["hypothesis"]) for row in generate("mnli", "test_matched")[:23]]


@pytest.fixture
def predict(monkeypatch, capsys):
    """Runs the command in this process: ``predict(run, *flags, stdin=b"...")``."""

    def run(*flags, stdin=b"", expect=0):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        status = main(["predict", *map(str, flags), "--device", "cpu"])
        done = capsys.readouterr()
        assert status == expect, done.err
        if expect:
            (line,) = [line for line in done.err.splitlines() if line.startswith("error")]
            assert done.out == ""
            return line
        return done.out

    return run


@pytest.fixture(scope="module")
def expected(mnli):
    return adalora.load(mnli, device="cpu")(ROWS)


def write(path, form, rows, names=("premise", "hypothesis"), extra=()):
    """``rows`` in a file of the form, between other columns."""
    records = [{"id": n, **dict(zip(names, row, strict=True)), "label": "?"} for n, row in rows]
    if form == "lines":
        path.write_text("".join("\t".join(row) + "\n" for _, row in rows), encoding="utf-8")
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    elif form == "json":
        path.write_text(json.dumps(records))
    elif form == "parquet":
        pd.DataFrame(records).to_parquet(path)
    else:
        pd.DataFrame(records).to_csv(path, sep="," if form == "csv" else "\t", index=False)
    return path


@pytest.mark.parametrize("form", ["lines", "csv", "tsv", "jsonl", "json", "parquet"])
def test_every_form_is_read_in_order_whatever_the_window(mnli, predict, expected, tmp_path, form):
    ending = "txt" if form == "lines" else form
    file = write(tmp_path / f"in.{ending}", form, list(enumerate(ROWS)))
    out = predict(mnli, file, "--window", 7, "--batch_size", 3)
    table = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    assert [row["index"] for row in table] == [str(n) for n in range(len(ROWS))]
    for row, answer in zip(table, expected, strict=True):
        assert row["label"] == answer.label
        for label, probability in answer.probabilities.items():
            assert float(row[f"p_{label}"]) == pytest.approx(probability, abs=2e-5)


@pytest.mark.parametrize("form", ["lines", "csv", "tsv", "jsonl"])
def test_the_standard_input_is_read_like_a_file(mnli, predict, expected, tmp_path, form):
    file = write(tmp_path / "in", form, list(enumerate(ROWS)))
    out = predict(mnli, "--input_format", form, "--merged", stdin=file.read_bytes())
    table = list(csv.DictReader(io.StringIO(out), delimiter="\t"))
    assert [row["label"] for row in table] == [answer.label for answer in expected]


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_every_form_is_written_and_says_the_same(mnli, predict, expected, tmp_path, form):
    file = write(tmp_path / "in.jsonl", "jsonl", list(enumerate(ROWS)))
    target = tmp_path / f"out.{form}"
    assert predict(mnli, file, "--output", target, "--with_texts") == ""
    text = target.read_text(encoding="utf-8")
    if form == "jsonl":
        records = [json.loads(line) for line in text.splitlines()]
        labels = [record["label"] for record in records]
        assert records[3]["probabilities"] == pytest.approx(expected[3].probabilities, abs=2e-5)
    else:
        delimiter = "\t" if form == "tsv" else ","
        records = list(csv.DictReader(io.StringIO(text), delimiter=delimiter))
        labels = [record["label"] for record in records]
    assert labels == [answer.label for answer in expected]
    assert [(record["premise"], record["hypothesis"]) for record in records] == ROWS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", f"out.{form}"]
    assert target.stat().st_mode & 0o777 == file.stat().st_mode & 0o777


ODD = ("tab\there", 'quote"d', "comma, really", "line\nbreak", "émoji 🙂", "[bold]")


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
def test_labels_of_odd_characters_survive(make, predict, tmp_path, form):
    run = make(labels=ODD)
    target = tmp_path / f"out.{form}"
    predict(run, "--output", target, stdin=b"a bird sang\nthe dog\n")
    text = target.read_text(encoding="utf-8")
    if form == "jsonl":
        records = [json.loads(line) for line in text.splitlines()]
        assert tuple(records[0]["probabilities"]) == ODD
    else:
        delimiter = "\t" if form == "tsv" else ","
        with target.open(newline="", encoding="utf-8") as stream:
            records = list(csv.DictReader(stream, delimiter=delimiter))
        assert tuple(records[0]) == ("index", "label", *(f"p_{name}" for name in ODD))
    assert len(records) == 2
    assert {record["label"] for record in records} <= set(ODD)


@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl"])
@given(
    texts=st.lists(
        st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=9)
        | st.sampled_from(["a\rb", "\r", "a\n\rb", '"', '"\t,', "", "\r\n"]),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_what_is_written_is_read_back_whatever_is_in_a_text(form, texts):
    out = io.StringIO(newline="")
    write_rows = writer(out, form, ("no", "yes"), ("text",))
    answers = [Prediction("yes", {"no": 0.25, "yes": 0.75})] * len(texts)
    write_rows([Texts(n, (text,)) for n, text in enumerate(texts, start=1)], answers)
    table = open_table(io.BytesIO(out.getvalue().encode()), "out", form)
    assert [row.texts for row in table.texts(("text", "label"))] == [(t, "yes") for t in texts]


def test_a_device_or_a_pipe_is_written_to_and_never_replaced(make, predict, tmp_path):
    run, pipe = make(), tmp_path / "pipe"
    expected = predict(run, stdin=b"a bird sang\n")
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    predict(run, "-o", pipe, stdin=b"a bird sang\n")
    reader.join(timeout=60)
    assert found == [expected]
    assert pipe.is_fifo()
    with pytest.raises(OSError, match="a device or a pipe"), atomic_write(pipe) as new:
        new.write_text("x")
    before = os.lstat("/dev/null")
    predict(run, "-o", "/dev/null", "--overwrite", stdin=b"a bird sang\n")
    assert os.lstat("/dev/null") == before


def test_numbers_are_written_for_regression(make, predict):
    run = make(labels=None)
    out = predict(run, stdin=b"a bird sang\n")
    header, row = out.splitlines()
    assert header == "index\tvalue"
    value = adalora.load(run, device="cpu")("a bird sang")
    assert float(row.split("\t")[1]) == pytest.approx(value, abs=2e-5)
    assert json.loads(predict(run, "--format", "jsonl", stdin=b"a bird sang\n")) == {
        "index": 0,
        "value": pytest.approx(value, abs=2e-5),
    }


def test_an_empty_line_is_an_empty_text_and_keeps_its_row(make, predict):
    out = predict(make(), stdin=b"one\n\nthree")
    assert [line.split("\t")[0] for line in out.splitlines()] == ["index", "0", "1", "2"]


def test_nothing_in_is_nothing_out(make, predict):
    assert predict(make()).splitlines() == ["index\tlabel\tp_no\tp_yes"]


@pytest.mark.parametrize(
    ("header", "flags", "column"),
    [
        ("label,text,other", (), "text"),
        ("other,Text,label", (), "Text"),
        ("text,other", ("--column", "other"), "other"),
        ("text,other", ("--text_column", "other"), "other"),
        ("idx,label,review,other", ("--text_column", "review"), "review"),
    ],
)
def test_the_column_of_training_or_the_one_that_is_named_is_read(
    make, predict, tmp_path, header, flags, column
):
    run = make()
    names = header.split(",")
    file = tmp_path / "in.csv"
    cells = ["the dog ran" if name == column else "x" for name in names]
    file.write_text(f"{header}\n{','.join(cells)}\n")
    expected = predict(run, stdin=b"the dog ran\n")
    assert predict(run, file, *flags) == expected


def test_quotes_are_characters_on_demand(make, predict, tmp_path):
    file = tmp_path / "in.tsv"
    file.write_text('text\tother\n"Open quote\t1\n')
    run = make()
    assert "line 2: a quotation mark opens a cell that is never closed" in predict(
        run, file, expect=2
    )
    assert predict(run, file, "--no_quotes") == predict(run, stdin=b'"Open quote\n')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ttwo\nalone\n", "line 2: 0 tabs"),
        ("a.txt", b"one\ttwo\nb\xff\tc\n", "line 2: byte 0xff is not UTF-8"),
        ("a.txt", b"one\ttwo\nb\0\tc\n", "line 2: a NUL character"),
        ("a.csv", b"", "is empty"),
        (
            "a.csv",
            b"only\nx\n",
            "no column 'premise' and none 'hypothesis', which the model has; its columns are 'on",
        ),
        ("a.csv", b"premise,hypothesis\na,b\nc\n", "line 3: 1 column, where the header has 2"),
        ("a.csv", b'premise,hypothesis\na,"b"c\n', "line 2: more text follows .*--no_quotes"),
        ("a.jsonl", b'{"premise": "a", "hypothesis": "b"}\n\n{"premise"\n', "line 3: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: .* is no JSON object"),
        ("a.jsonl", b'{"premise": "a", "hypothesis": null}', "line 1: 'hypothesis' is None"),
        ("a.jsonl", b'{"premise": "a", "hypothesis": 3}', "line 1: 'hypothesis' is 3"),
        ("a.parquet", b"PAR1", "could not be read as parquet"),
    ],
)
def test_a_bad_row_is_named_and_leaves_no_output(mnli, predict, tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    line = predict(mnli, file, "--output", tmp_path / "out.tsv", expect=2)
    assert str(file) in line
    assert re.search(message, line), line
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("absent.csv",), "absent.csv cannot be read: No such file"),
        (("--column", "premise"), "takes 2 texts (premise, hypothesis), and --text_column and"),
        (("--pair_column", "premise"), "name the first with --text_column"),
        (("--input_format", "parquet"), "cannot be read as a stream"),
        (("--batch_size", "0"), "0 is not at least 1"),
        (("--outptu", "x"), "unrecognized arguments: --outptu"),
        (("--output", "/absent/out.tsv"), "the folder /absent cannot be written to"),
        (("--output", "/"), "is a folder"),
    ],
)
def test_a_mistake_in_the_flags_is_one_sentence(mnli, predict, flags, message):
    assert message in predict(mnli, *flags, expect=2)


def test_a_run_that_is_none_is_named(predict, tmp_path):
    assert "no complete artefact" in predict(tmp_path, expect=2)


def test_an_output_is_replaced_only_when_asked_for(make, predict, tmp_path):
    target = tmp_path / "out.tsv"
    target.write_text("mine")
    run = make()
    assert "--overwrite replaces it" in predict(run, "--output", target, expect=2, stdin=b"a\n")
    assert target.read_text() == "mine"
    predict(run, "--output", target, "--overwrite", stdin=b"a\n")
    assert target.read_text().startswith("index\tlabel")


def test_an_input_may_be_replaced_by_its_own_predictions(make, predict, tmp_path):
    file = tmp_path / "texts.tsv"
    file.write_text("text\n" + "the dog ran\n" * 40)
    predict(make(), file, "--output", file, "--overwrite", "--with_texts", "--window", 8)
    lines = file.read_text().splitlines()
    assert lines[0] == "index\ttext\tlabel\tp_no\tp_yes"
    assert len(lines) == 41


def test_a_full_disk_keeps_the_earlier_output(make, predict, tmp_path):
    target = tmp_path / "out.tsv"
    target.write_text("earlier")
    run = make()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        line = predict(run, "-o", target, "--overwrite", stdin=b"the dog ran\n" * 300, expect=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "could not be written (File too large); nothing was left" in line
    assert target.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tsv"]


@pytest.mark.slow
def test_rows_are_answered_before_the_input_ends_and_a_reader_may_go_away(make, environment):
    process = subprocess.Popen(
        [sys.executable, "-m", "adalora", "predict", str(make()), "--window", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    process.stdin.write(b"one\ntwo\nthree\n")
    process.stdin.flush()
    os.set_blocking(process.stdout.fileno(), False)
    seen, deadline = b"", time.monotonic() + 120
    while seen.count(b"\n") < 3 and time.monotonic() < deadline:
        seen += process.stdout.read() or b""
        time.sleep(0.05)
    # The header and the first window, while the input is still open.
    assert [line.split(b"\t")[0] for line in seen.splitlines()] == [b"index", b"0", b"1"]

    process.stdout.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"the dog ran\n" * 5000)
        process.stdin.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 141  # as a shell counts it
    assert errors == b""


def test_a_bar_is_drawn_on_a_terminal(make, monkeypatch, capsys, tmp_path):
    file = tmp_path / "in.txt"
    file.write_text("the dog ran\n" * 40)
    run = make()
    master, slave = pty.openpty()
    shown = bytearray()

    def read():
        with contextlib.suppress(OSError):  # how Linux ends a terminal
            while part := os.read(master, 4096):
                shown.extend(part)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(slave, "w") as terminal, contextlib.redirect_stderr(terminal):
        assert main(["predict", str(run), str(file), "--device", "cpu"]) == 0
    reader.join(timeout=60)
    os.close(master)
    assert b"Predicting" in shown
    assert b"40 rows" in shown
    assert capsys.readouterr().out.count("\n") == 41

"""The reader of tables: every row, column and cell of any form as it was written, or a sentence."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora.data import separated
from adalora.data.table_reader import Reading, Table, form_of, open_file, open_table
from adalora.errors import UserError

FORMS = ("csv", "tsv", "jsonl", "json", "parquet")
CELLS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=12)
NAMES = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\ufeff,;\t|\r\n"), max_size=8
)
ANY = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]]]:
    columns = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    # Cells that are hard for somebody occur more often than chance has them.
    hard = st.sampled_from(['"', "\r", "\n", "a\r\nb", ",", "\t", ";", "", '"x', "1", " "])
    row = st.lists(CELLS | hard, min_size=len(columns), max_size=len(columns))
    return columns, draw(st.lists(row, min_size=1, max_size=5))


def written(form: str, columns: list[str], rows: list[list[str]], *, quoting: int = 1) -> bytes:
    """The table in a file of ``form``, by the usual writers."""
    if form == "parquet":
        arrays = [pa.array([row[at] for row in rows], pa.string()) for at in range(len(columns))]
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(arrays, names=columns), stream)
        return stream.getvalue()
    objects = [dict(zip(columns, row, strict=True)) for row in rows]
    if form == "jsonl":
        return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects).encode()
    if form == "json":
        return json.dumps(objects, indent=quoting or None).encode()
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="," if form == "csv" else "\t", quoting=quoting).writerows(
        [columns, *rows]
    )
    return text.getvalue().encode()


def read(content: bytes, form: str, **reading: Any) -> Table:
    return open_table(io.BytesIO(content), f"a.{form}", form, Reading(**reading))


def cells(table: Table) -> list[list[Any]]:
    return [list(row) for row in table.sample()]


def refusal(content: bytes, form: str, **reading: Any) -> str:
    with pytest.raises(UserError) as caught:
        cells(read(content, form, **reading))
    return str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@given(table=tables(), pieces=st.sampled_from([1, 5, 64, 2**16]))
@ANY
def test_what_is_written_is_read(
    form: str, table: tuple[list[str], list[list[str]]], pieces: int
) -> None:
    columns, rows = table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separated, "_CHUNK", pieces)
        found = read(written(form, columns, rows), form)
        assert (found.columns, cells(found)) == (tuple(columns), rows)


@pytest.mark.parametrize("form", ["csv", "tsv"])
@given(table=tables())
@ANY
def test_where_few_cells_are_quoted_what_is_written_is_read_or_may_be_read_in_two_ways(
    form: str, table: tuple[list[str], list[list[str]]]
) -> None:
    columns, rows = table
    content = written(form, columns, rows, quoting=csv.QUOTE_MINIMAL)
    refused = ""
    try:
        found = read(content, form)
        assert (found.columns, cells(found)) == (tuple(columns), rows)
    except UserError as error:
        refused = str(error)
    assert not refused or "over lines that are whole rows themselves" in refused


@given(lines=st.lists(CELLS.filter(lambda text: not set(text) & set("\r\n\ufeff")), max_size=5))
@ANY
def test_every_line_is_a_text(lines: list[str]) -> None:
    found = read("".join(line + "\n" for line in lines).encode(), "lines")
    assert [row.texts for row in found.texts(())] == [(line,) for line in lines]


def test_long_files_are_read_in_pieces(tmp_path: Path) -> None:
    columns, rows = ["a", "b"], [[f"text {n}\n" * 9, "é" * (n % 50)] for n in range(5000)]
    for form in FORMS:
        path = tmp_path / f"a.{form}"
        path.write_bytes(written(form, columns, rows))
        with open_file(path) as table:
            assert [list(row.cells) for row in table.rows(["a", "b"])] == rows


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    for form in ("csv", "tsv", "jsonl", "json"):
        path = tmp_path / f"a.{form}"
        os.mkfifo(path)
        content = written(form, ["a"], [["x"], ["y"]])
        writer = threading.Thread(target=path.write_bytes, args=(content,))
        writer.start()
        with open_file(path) as table:
            assert [row.cells for row in table.rows(["a"])] == [["x"], ["y"]]
        writer.join()


# --- separators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "content", "columns", "said"),
    [
        ("csv", 'text;label\n"a; b, c";1\n', ("text", "label"), "semicolons"),
        ("csv", "text;label\ngood, really;1\n", ("text", "label"), "semicolons"),
        ("csv", "id;Review Text;stars\n1;a, b;5\n", ("id", "Review Text", "stars"), "semicolons"),
        ("csv", "text\tlabel\na, b\t1\n", ("text", "label"), "tabs"),
        ("csv", "text|label\na, b|1\n", ("text", "label"), "bars"),
        ("csv", "text;score, total\na;1\n", ("text", "score, total"), "semicolons"),
        ("csv", "sep=;\ntext;label\na;1\n", ("text", "label"), "semicolons"),
        ("csv", '"sep=|"\r\ntext|label\r\na|1\r\n', ("text", "label"), "bars"),
        ("tsv", "text,label\na,1\n", ("text", "label"), "commas"),
        ("tsv", "text;label\na;1\n", ("text", "label"), "semicolons"),
        ("csv", "text,label\na;b|c,1\n", ("text", "label"), None),
        ("tsv", "text\tlabel\na, b; c\t1\n", ("text", "label"), None),
        ("csv", "text\na; b\n", ("text",), None),
        ("csv", "What do you think of it; really, now\n", None, None),
        ("csv", "one text, which is long; and has commas\n", None, None),
    ],
)
def test_the_separator_is_that_of_the_header_and_another_than_usual_is_said(
    form: str, content: str, columns: tuple[str, ...] | None, said: str | None
) -> None:
    table = read(content.encode(), form)
    assert columns is None or table.columns == columns
    assert table.notes == ([f"columns are separated by {said}"] if said else [])


# --- quotation marks ------------------------------------------------------------------------------

SWALLOWED = [
    'text,label\n"I came.,0\nI saw.,1\nI conquered.",0\n',
    'text\tlabel\na\tpos\nb\tneg\n"I came.\tpos\nI conquered."\tneg\n',
    'label\ttext\n0\t"I came.\n1\tI saw.\n0\tI conquered."\n',
    'id,text,label\n1,"a,no\n2,b,yes\n3,c",no\n4,d,yes\n',
    'text;label\n"a;0.5\nb;0.25\nc";1.0\n',
]


@pytest.mark.parametrize("content", SWALLOWED)
def test_a_quotation_mark_that_closes_rows_later_is_refused_by_its_line(content: str) -> None:
    form = "tsv" if "\t" in content else "csv"
    line = content[: content.index('"')].count("\n") + 1
    says = refusal(content.encode(), form)
    assert f"a.{form}, line {line}: a quotation mark opens a cell that goes on to line " in says
    assert "--no_quotes" in says
    rows = cells(read(content.encode(), form, quotes=False))
    assert len(rows) == content.count("\n") - 1


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text,label\n"Hello, world\nbye",1\n', ["Hello, world\nbye"]),
        ('text,label\n"one\n\ntwo",1\n"x, y\nz",0\n', ["one\n\ntwo", "x, y\nz"]),
        ('label,text\n1,"a\nb"\n', ["a\nb"]),
        ('text\n"a\nb"\nc\n', ["a\nb", "c"]),
        ('text,label\nsaid "no" twice,1\n', ['said "no" twice']),
    ],
)
def test_line_ends_and_marks_inside_of_texts_are_read(content: str, texts: list[str]) -> None:
    assert [row.texts[0] for row in read(content.encode(), "csv").texts(("text",))] == texts


# --- rows of another width, and the other sentences -----------------------------------------------


@pytest.mark.parametrize(
    ("form", "content", "says"),
    [
        ("csv", "text,label\na,1\nb,c,0\n", "line 3: 3 columns, where the header has 2"),
        ("csv", "text,label\na,1\n\n\nb\n", "line 5: 1 column, where the header has 2"),
        ("csv", 'text,label\n"a\nb",1\nc\n', "line 4: 1 column"),
        ("tsv", "text\tlabel\nbroken\nin two\t1\n", "line 2: 1 column"),
        ("csv", 'text,label\na,1\n"open,0\nb,1\n', "line 3: a quotation mark opens a cell that is"),
        ("tsv", 'text\tlabel\n"open\t0\nsays "no" \t1\n', "line 2: more text follows"),
        ("csv", 'text,label\n"a"b,1\n', "line 2: more text follows the closing quotation mark"),
        ("csv", "text,text\na,b\n", "has two columns 'text'"),
        ("csv", "", "is empty; a row with the names of the columns comes first"),
        ("csv", "\n\n", "is empty"),
        ("jsonl", '{"a": 1}\n\n[1]\n', "line 3: [1] is no JSON object"),
        ("jsonl", '{"a": 1}\n{"a"\n', "line 2: not JSON"),
        ("jsonl", '{"a": 1, "a": 2}\n', "line 1: not JSON ('a' occurs twice in one object)"),
        ("json", '[{"a": 1},\n{"a": 2}', "line 2: not JSON"),
        ("json", '[{"a": 1}\n{"a": 2}]', "line 2: not JSON"),
        ("json", '[{"a": 1}] x', "more follows the end of the list"),
        ("json", '{"a": {"0": "x"}, "b": {"0": 1}}', "a column after the other"),
        ("parquet", "PAR1", "could not be read as parquet"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_line(form: str, content: str, says: str) -> None:
    assert says in refusal(content.encode(), form)


def test_the_unclosed_mark_of_a_long_file_does_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(separated, "_LONGEST_CELL", 1000)
    content = 'text,label\na,1\n"open,0\n' + "b,1\n" * 5000
    stream = io.BytesIO(content.encode())
    with pytest.raises(UserError, match="line 3: a quotation mark opens a cell that is never"):
        cells(open_table(stream, "a.csv", "csv"))
    assert stream.tell() < len(content)


def test_empty_lines_are_counted_and_in_one_column_are_rows() -> None:
    table = read(b"text,label\na,1\n\nb,0\n\n", "csv")
    assert cells(table) == [["a", "1"], ["b", "0"]]
    assert table.notes == ["2 empty lines passed over"]
    assert cells(read(b"text\na\n\nb\n", "csv")) == [["a"], [""], ["b"]]


# --- encodings ------------------------------------------------------------------------------------

TEXT = "text,label\ncafé – “oui”,1\n"


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        (TEXT.encode(), None, []),
        (codecs.BOM_UTF8 + TEXT.encode(), None, []),
        (codecs.BOM_UTF8 + TEXT.encode(), "utf8", []),
        (TEXT.encode("utf-16"), None, ["encoded in utf-16"]),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), None, ["encoded in utf-16"]),
        (TEXT.encode("utf-32"), None, ["encoded in utf-32"]),
        (TEXT.encode("utf-16-le"), "utf-16-le", ["encoded in utf-16-le"]),
        (TEXT.encode("cp1252"), "cp1252", ["encoded in cp1252"]),
        (TEXT.encode("gb18030"), "gb18030", ["encoded in gb18030"]),
    ],
)
def test_encodings_are_recognised_or_named(
    content: bytes, encoding: str | None, said: list[str]
) -> None:
    table = read(content, "csv", encoding=encoding)
    assert cells(table) == [["café – “oui”", "1"]]
    assert table.notes == said


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "lines"])
def test_a_byte_of_another_encoding_is_named_by_line_and_place(form: str) -> None:
    line = '{"a": "caf\xe9"}' if form.startswith("json") else "text,caf\xe9"
    before = "[\n\n" if form == "json" else "{}\n{}\n" if form == "jsonl" else "a,b\n\n"
    says = refusal((before + line).encode("latin-1"), form)
    place = line.index("\xe9") + 1
    assert f"line 3: byte 0xe9 is not UTF-8 (byte {place} of the line)" in says
    assert "--encoding cp1252" in says


@pytest.mark.parametrize(
    ("content", "encoding", "says"),
    [
        (b"a\n\x00b\n", None, "line 2: a NUL character"),
        (TEXT.encode("utf-16-le"), None, "--encoding utf-16-le"),
        (b"a\n", "klingon", "'klingon' is no encoding of text"),
        (b"a\n", "base64", "'base64' is no encoding of text"),
        (codecs.BOM_UTF8 + b"a\n", "latin-1", "leave the flag out"),
        ("a\n".encode("utf-16")[:-1], None, "is not utf-16 all through"),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(
    content: bytes, encoding: str | None, says: str
) -> None:
    assert says in refusal(content, "csv", encoding=encoding)


def test_forms_go_by_their_endings() -> None:
    names = ("A.CSV", "b.tab", "c.ndjson", "d.txt", "e", "f.xlsx")
    assert list(map(form_of, names)) == ["csv", "tsv", "jsonl", "lines", None, None]

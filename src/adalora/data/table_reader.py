"""One strict reader for every form of the user's files, row after row: nothing is held whole.

Training, evaluation and prediction read by it alike. Only a JSON file that holds one object has to
be read at once.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from adalora.data.separated import Cells, TextSource, is_unicode
from adalora.errors import UserError

#: Form -> endings of its files.
FORMS = {
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "json": (".json",),
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "lines": (".txt", ".text"),
}
_SAMPLE = 200


@dataclass(frozen=True)
class Reading:
    """How to read a file, where its ending and its beginning do not say.

    Attributes:
        form: one of ``FORMS``; None for that of the file's ending.
        quotes: whether quotation marks enclose cells of CSV and TSV.
        encoding: of the text; None for UTF-8, or what a byte order mark says.
    """

    form: str | None = None
    quotes: bool = True
    encoding: str | None = None


#: As the file's ending and its beginning say.
USUAL = Reading()


class Row(NamedTuple):
    """One row: its number and its line, counted from 1 (0 where there are none), and its cells."""

    number: int
    line: int
    cells: Sequence[Any]


class Texts(NamedTuple):
    """The one or two texts of a row, and its number counted from 1."""

    number: int
    texts: tuple[str, ...]


@dataclass
class Table:
    """A file that is open, its columns known and its rows not read yet.

    Attributes:
        place: what messages call it.
        form: one of ``FORMS``.
        columns: their names; () for plain lines.
        class_names: column -> names of its classes, where the file's own schema has them.
        notes: what is not as usual about the file; complete when the rows are read.
    """

    place: str
    form: str
    columns: tuple[str, ...]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _rows: Iterator[Row] = field(default_factory=lambda: iter(()))

    def sample(self) -> list[Sequence[Any]]:
        """The cells of the first rows, which are read again with the others."""
        first = list(itertools.islice(self._rows, _SAMPLE))
        self._rows = itertools.chain(first, self._rows)
        return [row.cells for row in first]

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row with the cells of ``columns`` alone, in their order.

        Raises:
            UserError: on the first row that cannot be read; file and line are named.
        """
        if self.form == "lines":
            yield from self._rows
            return
        positions = [self.columns.index(name) for name in columns]
        for row in self._rows:
            yield row._replace(cells=[row.cells[position] for position in positions])

    def texts(self, columns: Sequence[str], count: int = 1) -> Iterator[Texts]:
        """The texts of every row.

        Args:
            columns: that hold them; () for plain lines.
            count: texts on a plain line, with a tab between two.

        Raises:
            UserError: on the first row without them.
        """
        for row in self.rows(columns):
            if columns:
                texts = tuple(self.text(row, at, name) for at, name in enumerate(columns))
            else:
                texts = tuple(row.cells[0].split("\t")) if count == 2 else (row.cells[0],)
                if len(texts) != count:
                    raise UserError(
                        f"{self.where(row)}: {len(texts) - 1} tabs, where a line holds two texts "
                        "with one tab between them."
                    )
            yield Texts(row.number, texts)

    def where(self, row: Row) -> str:
        """The place of ``row``, for a sentence."""
        return f"{self.place}, line {row.line}" if row.line else f"{self.place}, row {row.number}"

    def text(self, row: Row, position: int, column: str) -> str:
        """The text in a cell of ``row``, which is of ``column``.

        Raises:
            UserError: if it is none.
        """
        value = row.cells[position]
        if not isinstance(value, str):
            raise UserError(
                f"{self.where(row)}: {column!r} is {value!r:.60}, where a text is expected."
            )
        if not value.isascii() and not is_unicode(value):
            raise UserError(
                f"{self.where(row)}: {column!r} holds half of a surrogate pair, which is no text."
            )
        return value


def form_of(name: str) -> str | None:
    """The form of a file by its ending."""
    suffix = Path(name).suffix.lower()
    return next((form for form, endings in FORMS.items() if suffix in endings), None)


@contextlib.contextmanager
def open_file(path: Path, reading: Reading = USUAL) -> Iterator[Table]:
    """A file of examples, by its ending.

    Raises:
        UserError: if it is absent, of no known form, or unreadable.
    """
    form = reading.form or form_of(path.name)
    if form is None or (form == "lines" and reading.form is None):
        known = ", ".join(ending for name in FORMS if name != "lines" for ending in FORMS[name])
        raise UserError(f"{path} ends in {path.suffix!r}; data files end in one of {known}.")
    if not path.exists():
        raise UserError(f"The data file {str(path)!r} does not exist.")
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}.") from error
    with stream:
        yield open_table(stream, str(path), form, reading)


def open_table(stream: BinaryIO, place: str, form: str, reading: Reading = USUAL) -> Table:
    """A table over an open stream of bytes, of which only the beginning is read.

    Args:
        stream: open; of a parquet file one that can be positioned.
        place: what messages call it.
        form: one of ``FORMS``.
        reading: quotation marks and encoding.

    Raises:
        UserError: if the beginning cannot be read, or two columns have one name.
    """
    if form == "parquet":
        table = _parquet(stream, place)
    elif form in ("csv", "tsv"):
        source = TextSource(stream, place, reading.encoding)
        cells = Cells(source, "," if form == "csv" else "\t", quotes=reading.quotes)
        table = Table(place, form, cells.columns, notes=cells.notes)
        table._rows = (
            Row(number, line, row) for number, (line, row) in enumerate(cells.rows(), start=1)
        )
        _say_encoding(table, source)
    else:
        source = TextSource(stream, place, reading.encoding)
        if form == "lines":
            table = Table(place, form, ())
            lines = enumerate(source.lines(), start=1)
            table._rows = (Row(n, n, [line.rstrip("\r\n")]) for n, line in lines)
        else:
            read = _json_lines(source) if form == "jsonl" else _json(source)
            # A name may come late; of a stream that is being written the first object has to do.
            table = _of_objects(read, place, form, _SAMPLE if stream.seekable() else 1)
        _say_encoding(table, source)
    _check_names(table)
    return table


def _say_encoding(table: Table, source: TextSource) -> None:
    if source.encoding not in ("utf-8", "utf-8-sig"):
        table.notes.append(f"encoded in {source.encoding}")


def _check_names(table: Table) -> None:
    for name, count in Counter(table.columns).items():
        if count > 1 and name.strip():
            raise UserError(
                f"{table.place} has two columns {name!r:.60}; give each a name of its own."
            )
        if "\0" in name or not is_unicode(name):
            raise UserError(
                f"{table.place} has a column {name!r:.60}, which is no name; give it another."
            )


# ---- objects -------------------------------------------------------------------------------------

Numbered = tuple[int, Any]  # line (0 where it is not known) and value


def _of_objects(values: Iterator[Numbered], place: str, form: str, ahead: int) -> Table:
    """A table whose columns are the names in its first ``ahead`` objects."""

    def checked() -> Iterator[tuple[int, int, dict[str, Any]]]:
        for number, (line, value) in enumerate(values, start=1):
            if not isinstance(value, dict):
                where = f"line {line}" if line else f"row {number}"
                raise UserError(
                    f"{place}, {where}: {value!r:.60} is no JSON object; each example is one, such "
                    'as {"text": "...", "label": "..."}.'
                )
            yield number, line, value

    objects = checked()
    first = list(itertools.islice(objects, ahead))
    columns = list(dict.fromkeys(name for _, _, value in first for name in value))
    table = Table(place, form, tuple(columns))
    table._rows = (
        Row(number, line, [value.get(name) for name in table.columns])
        for number, line, value in itertools.chain(first, objects)
    )
    return table


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, count in Counter(k for k, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} occurs twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_no_twins)


def _json_lines(source: TextSource) -> Iterator[Numbered]:
    for number, line in enumerate(source.lines(), start=1):
        if line.strip():
            try:
                yield number, _DECODER.decode(line.strip())
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source.place}, line {number}: not JSON ({error}).") from error


def _json(source: TextSource) -> Iterator[Numbered]:
    """The objects of a JSON file: a list, ``{"data": [...]}``, or one object after the other."""
    parser = _Pieces(source)
    if parser.next_mark() == "[":
        parser.skip()
        yield from parser.items()
        return
    first = parser.value()
    if parser.next_mark():
        # Both forms are called .json in the wild, also by the original's documentation.
        yield parser.line, first
        while parser.next_mark():
            yield parser.line, parser.value()
    elif isinstance(first, dict) and isinstance(first.get("data"), list):
        # That is how datasets' own JSON reader lets a list be named.
        for value in first["data"]:
            yield 0, value
    elif isinstance(first, dict) and first and all(isinstance(v, dict) for v in first.values()):
        raise UserError(
            f"{source.place} holds a column after the other, and a list of objects is expected, "
            'one per example; pandas writes it with to_json(..., orient="records").'
        )
    else:
        yield 1, first


class _Pieces:
    """JSON values read one by one from a text that comes in pieces."""

    def __init__(self, source: TextSource) -> None:
        self._chunks, self._place = source.chunks(), source.place
        self._text, self._at, self.line = "", 0, 1

    def _more(self) -> bool:
        """Read on, as much again as is waiting: one long value is not tried at every piece."""
        self.line += self._text.count("\n", 0, self._at)
        pieces = [self._text[self._at :]]
        wanted = length = len(pieces[0])
        for chunk in self._chunks:
            pieces.append(chunk)
            length += len(chunk)
            if length >= 2 * wanted:
                break
        self._text, self._at = "".join(pieces), 0
        return length > wanted

    def next_mark(self) -> str:
        """The next character that is no space; none at the end."""
        while True:
            rest = self._text[self._at :]
            found = len(rest) - len(rest.lstrip(" \t\r\n\ufeff"))
            self._at += found
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Pass over the character that ``next_mark`` gave."""
        self._at += 1

    def value(self) -> Any:
        """The next value."""
        self.next_mark()
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                at = getattr(error, "pos", 0)
                # Damaged for good, unless it is where the piece ends.
                cut = "Unterminated" in str(error) or len(self._text) - at < 16
                if isinstance(error, json.JSONDecodeError) and cut and self._more():
                    continue
                line = self.line + self._text.count("\n", 0, at or self._at)
                reason = getattr(error, "msg", error)
                raise UserError(f"{self._place}, line {line}: not JSON ({reason}).") from error
            return value

    def items(self) -> Iterator[Numbered]:
        """The values of a list whose opening bracket is behind."""
        if self.next_mark() == "]":
            self.skip()
        else:
            while True:
                self.next_mark()
                line = self.line + self._text.count("\n", 0, self._at)
                yield line, self.value()
                mark = self.next_mark()
                self.skip()
                if mark == "]":
                    break
                if mark != ",":
                    line = self.line + self._text.count("\n", 0, self._at)
                    expected = "',' or ']' expected after an example"
                    raise UserError(f"{self._place}, line {line}: not JSON ({expected}).")
        if self.next_mark():
            raise UserError(f"{self._place}: not JSON (more follows the end of the list).")


# ---- parquet -------------------------------------------------------------------------------------


def _parquet(stream: BinaryIO, place: str) -> Table:
    import pyarrow.parquet as pq

    with _told(place):
        file = pq.ParquetFile(stream)
        schema = file.schema_arrow
        table = Table(place, "parquet", tuple(schema.names), _class_names(schema.metadata or {}))

    def rows() -> Iterator[Row]:
        number = 0
        with _told(place):
            for batch in file.iter_batches(batch_size=1000):
                # Column by column: a row may hold columns of one name, or none.
                columns = [column.to_pylist() for column in batch.columns]
                for index in range(batch.num_rows):
                    number += 1
                    yield Row(number, 0, [column[index] for column in columns])

    table._rows = rows()
    return table


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    try:
        yield
    except (UserError, GeneratorExit):
        raise
    except Exception as error:  # pyarrow raises classes of its own, and Python's
        text = " ".join(str(error).split())
        raise UserError(f"{place} could not be read as parquet: {text[:200]}") from error


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, tuple[str, ...]]:
    """Column -> names of its classes, as the data sets library notes them in a file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, RecursionError, AttributeError):
        return {}

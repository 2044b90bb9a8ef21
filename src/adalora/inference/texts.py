"""Texts to predict, one row after another: a file or a stream of any length is never held whole.

Plain lines, CSV, TSV and JSON lines are read as they come; JSON and Parquet, which cannot be, are
read as training reads them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from adalora.errors import UserError

#: Form -> endings of its files.
FORMATS = {
    "lines": (".txt", ".text"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "parquet": (".parquet",),
}
# Columns that number the rows and are no text, and the one that training reads labels from.
_NO_TEXT = ("label", "idx", "index", "id")


@dataclass(frozen=True)
class Columns:
    """Which columns to read.

    Attributes:
        asked: named by the user; () for none.
        known: those the model was trained on, if that is known.
        count: texts per row, 1 or 2.
    """

    asked: tuple[str, ...]
    known: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class Row:
    """One row: its number counted from 1, and its one or two texts."""

    number: int
    texts: tuple[str, ...]


def format_of(name: str) -> str:
    """The form of a file by its ending; plain lines where the ending says nothing."""
    suffix = Path(name).suffix.lower()
    return next((form for form, endings in FORMATS.items() if suffix in endings), "lines")


def choose_columns(present: Sequence[str], columns: Columns, place: str) -> tuple[str, ...]:
    """The columns to read of those ``present``.

    Those asked for; else those of training; else ``sentence1`` and ``sentence2``, or ``sentence``
    or ``text``; else the first ones that are neither label nor number.

    Raises:
        UserError: if one that was asked for is missing, or there are too few.
    """
    shown = ", ".join(map(repr, present)) or "none"
    for name in columns.asked:
        if name not in present:
            raise UserError(f"{place} has no column {name!r}; its columns are {shown}.")
    if columns.asked:
        return columns.asked
    usual = [("sentence1", "sentence2")] if columns.count == 2 else [("sentence",), ("text",)]
    for names in (columns.known, *usual):
        if names and set(names) <= set(present):
            return names
    texts = [name for name in present if name.lower() not in _NO_TEXT]
    if len(texts) < columns.count:
        raise UserError(
            f"{place} has too few columns of text: {columns.count} are needed, and its columns are "
            f"{shown}."
        )
    return tuple(texts[: columns.count])


def read_rows(
    stream: BinaryIO, *, place: str, form: str, columns: Columns, quotes: bool = True
) -> Iterator[Row]:
    """The rows of ``stream``, read as they are asked for.

    Args:
        stream: open, in bytes; UTF-8.
        place: what messages call it.
        form: one of ``FORMATS``. Plain lines hold one text, or two with a tab between them.
        columns: which to read of the other forms.
        quotes: whether quotes enclose cells of CSV and TSV; GLUE's own files have them as
            characters.

    Raises:
        UserError: on the first row that cannot be used; file and row are named.
    """
    if form == "lines":
        return _of_lines(_decoded(stream, place), place, columns.count)
    if form in ("csv", "tsv"):
        separator = "," if form == "csv" else "\t"
        return _of_cells(_decoded(stream, place), separator, place, columns, quotes)
    if form == "jsonl":
        return _of_objects(_parsed(_decoded(stream, place), place), place, columns)
    return _of_objects(_whole_file(Path(place)), place, columns)


def _decoded(stream: BinaryIO, place: str) -> Iterator[str]:
    """Lines with their ends, as text."""
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{place}, line {number}: byte {raw[error.start]:#04x} is not UTF-8; save the file "
                "as UTF-8."
            ) from error
        if "\0" in line:
            raise UserError(f"{place}, line {number}: a NUL character; this is not a text file.")
        yield line


def _of_lines(lines: Iterable[str], place: str, count: int) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n")
        texts = tuple(text.split("\t")) if count == 2 else (text,)
        if len(texts) != count:
            raise UserError(
                f"{place}, row {number}: {len(texts) - 1} tabs, where a line holds two texts with "
                "one tab between them."
            )
        yield Row(number, texts)


def _of_cells(
    lines: Iterable[str], separator: str, place: str, columns: Columns, quotes: bool
) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    # Strict, as otherwise a quote that is never closed swallows the rest of the file.
    reader = csv.reader(
        lines,
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    number = 0
    try:
        header = next(reader, None)
        if header is None:
            raise UserError(f"{place} is empty; a row with the names of the columns comes first.")
        wanted = choose_columns(header, columns, place)
        positions = [header.index(name) for name in wanted]
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                raise UserError(
                    f"{place}, row {number} (line {reader.line_num}): {len(cells)} columns, where "
                    f"the header has {len(header)}."
                )
            yield Row(number, tuple(cells[position] for position in positions))
    except csv.Error as error:
        hint = "; --no_quotes reads quotes as characters" if quotes else ""
        raise UserError(
            f"{place}, row {number + 1} (line {reader.line_num}): {error}{hint}."
        ) from error


def _parsed(lines: Iterable[str], place: str) -> Iterator[Any]:
    number = 0
    for line in lines:
        if line.strip():
            number += 1
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}, row {number}: not JSON ({error}).") from error


def _whole_file(path: Path) -> Iterator[Any]:
    from adalora.glue.user_files import read_file

    frame = read_file(path)
    return (dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False))


def _of_objects(values: Iterable[Any], place: str, columns: Columns) -> Iterator[Row]:
    wanted: tuple[str, ...] | None = None
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise UserError(f"{place}, row {number}: {value!r:.60} is no JSON object.")
        if wanted is None:
            wanted = choose_columns(list(value), columns, place)
        for name in wanted:
            if not isinstance(value.get(name), str):
                raise UserError(
                    f"{place}, row {number}: {name!r} is {value.get(name)!r:.60}, where a text is "
                    "expected."
                )
        yield Row(number, tuple(value[name] for name in wanted))

"""Bytes as lines of text, and lines as cells: encodings, separators and quotation marks.

Nothing is mended in silence: a row of another width, a quotation mark that is never closed, a byte
that is no text are each refused by their line.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from adalora.data.column_choice import is_known
from adalora.errors import UserError

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # Before UTF-16, whose mark is the beginning of this one.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# No text is longer: a quotation mark was opened and the rest of the file went into its cell.
_LONGEST_CELL = 2**24
_CHUNK = 2**16


class TextSource:
    """The text of a stream of bytes, checked as it is read.

    Args:
        stream: open, in bytes.
        place: what messages call it.
        encoding: as the user names it; None for UTF-8, or what a byte order mark says.

    Raises:
        UserError: if there is no such encoding, or the stream begins with the mark of another.
    """

    def __init__(self, stream: BinaryIO, place: str, encoding: str | None = None) -> None:
        self.place = place
        self._stream: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream)  # type: ignore[type-var]
        start = self._stream.peek(4)[:4]
        marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
        if encoding is not None:
            self._check(encoding, marked)
        #: The encoding that is read.
        self.encoding = marked or encoding or "utf-8"

    def _check(self, encoding: str, marked: str | None) -> None:
        try:
            known = codecs.lookup(encoding)
            "".encode(encoding)
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"--encoding {encoding!r} is no encoding of text; utf-8, latin-1, cp1252 and "
                "utf-16 are some."
            ) from error
        if marked and not known.name.startswith(marked.removesuffix("-sig")):
            raise UserError(
                f"{self.place} begins with the byte order mark of {marked.removesuffix('-sig')}, "
                f"and --encoding says {encoding}; leave the flag out."
            )

    def lines(self) -> Iterator[str]:
        r"""Lines with their ends, which are ``\n``, ``\r\n`` or ``\r``."""
        with_ends = self._read(iter)
        for number, line in enumerate(with_ends, start=1):
            self._check_text(line, number)
            yield line

    def chunks(self) -> Iterator[str]:
        """Pieces of any length, for a form whose lines may have any."""
        number = 1
        for chunk in self._read(lambda text: iter(lambda: text.read(_CHUNK), "")):
            self._check_text(chunk, number)
            number += chunk.count("\n")
            yield chunk

    def _read(self, take: Callable[[io.TextIOWrapper], Iterator[str]]) -> Iterator[str]:
        # Bytes that are no text become single surrogates, which are found by the line.
        text = io.TextIOWrapper(
            self._stream, encoding=self.encoding, errors="surrogateescape", newline=""
        )
        try:
            yield from take(text)
        except UnicodeError as error:
            raise UserError(
                f"{self.place} is not {self.encoding} all through ({error}); name its encoding "
                "with --encoding."
            ) from error
        finally:
            # The stream is the caller's to close.
            if not text.closed:
                text.detach()

    def _check_text(self, text: str, number: int) -> None:
        if "\0" in text:
            number += text[: text.index("\0")].count("\n")
            raise UserError(
                f"{self.place}, line {number}: a NUL character; this is not a text file, or one in "
                "UTF-16 without its mark (--encoding utf-16-le)."
            )
        if text.isascii():
            return
        try:
            text.encode()
        except UnicodeEncodeError as error:
            before = text[: error.start]
            line = before.rpartition("\n")[2]
            at = len(line.encode(errors="surrogateescape")) + 1
            byte, name = ord(text[error.start]) & 0xFF, self.encoding.removesuffix("-sig").upper()
            raise UserError(
                f"{self.place}, line {number + before.count(chr(10))}: byte {byte:#04x} is not "
                f"{name} (byte {at} of the line); save the file as UTF-8, or name its encoding: "
                "--encoding cp1252 is that of Western Windows, latin-1 the older one."
            ) from error


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Cells:
    """The rows of a separated file: its header, and then cells by line.

    Args:
        source: of the text.
        own: the separator that the file's ending stands for.
        quotes: whether quotation marks enclose cells; GLUE's own files have them as characters.

    Raises:
        UserError: if there is no header, or it cannot be read.
    """

    def __init__(self, source: TextSource, own: str, *, quotes: bool) -> None:
        csv.field_size_limit(_LONGEST_CELL)
        self.place, self.quotes = source.place, quotes
        self.notes: list[str] = []
        self._lines, self._number = source.lines(), 0
        self._raw: list[str] = []
        first = next((line for line in self._taken() if line.strip("\r\n")), None)
        if first is None:
            raise UserError(
                f"{self.place} is empty; a row with the names of the columns comes first."
            )
        self.separator = own
        # What Excel puts before the header where the separator is not the usual one.
        if hint := re.fullmatch(r'"?sep=(.)"?[\r\n]*', first, re.IGNORECASE):
            self.separator, first = hint[1], next(self._taken(), "")
        else:
            self.separator = _separator(first, own, quotes=quotes)
        if self.separator != own:
            shown = SEPARATORS.get(self.separator, repr(self.separator))
            self.notes.append(f"columns are separated by {shown}")
        self._reader = self._csv(self._chained(first))
        self.columns = tuple(self._next() or ())

    def _taken(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            self._raw.append(line)
            yield line

    def _chained(self, first: str) -> Iterator[str]:
        yield first
        yield from self._taken()

    def _csv(self, lines: Iterator[str]) -> Iterator[list[str]]:
        # Strict, as otherwise a quotation mark that is never closed swallows the rest of the file.
        return csv.reader(
            lines,
            delimiter=self.separator,
            quoting=csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE,
            strict=True,
        )

    def _next(self) -> list[str] | None:
        try:
            return next(self._reader, None)
        except csv.Error as error:
            start = self._number - len(self._raw) + 1
            raise UserError(f"{self.place}, line {start}: {self._reason(error)}") from error

    def _reason(self, error: csv.Error) -> str:
        if "end of data" in str(error) or "field limit" in str(error):
            return (
                "a quotation mark opens a cell that is never closed; close it, or read quotation "
                "marks as characters with --no_quotes."
            )
        if "expected after" in str(error):
            where = "" if len(self._raw) == 1 else f" that ends in line {self._number}"
            return (
                f"more text follows the closing quotation mark of a cell{where}; a quotation mark "
                "inside of quoted text is written twice, or --no_quotes reads all of them as "
                "characters."
            )
        return f"{error}."

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The first line of each row, counted from 1, and its cells, as many as the header's.

        Raises:
            UserError: on a row that is shorter or longer, or whose quotation marks can be read in
                two ways.
        """
        width, blank = len(self.columns), 0
        seen: list[set[str]] = [set() for _ in self.columns]
        while True:
            self._raw.clear()
            cells = self._next()
            if cells is None:
                break
            line = self._number - len(self._raw) + 1
            if not cells:
                if width > 1:
                    blank += 1
                    continue
                # Where there is one column, an empty line is a row with an empty text.
                cells = [""]
            if len(cells) != width:
                raise UserError(f"{self.place}, line {line}: {self._of_width(len(cells))}")
            if len(self._raw) > 1 and self._swallowed(seen):
                raise UserError(
                    f"{self.place}, line {line}: a quotation mark opens a cell that goes on to "
                    f"line {self._number}, over lines that are whole rows themselves; read "
                    "quotation marks as characters with --no_quotes, or close it in its line."
                )
            for known, cell in zip(seen, cells, strict=True):
                if len(cell) <= 32 and len(known) < 200:
                    known.add(cell)
            yield line, cells
        if blank:
            self.notes.append(f"{blank:,} empty {'line' if blank == 1 else 'lines'} passed over")

    def _of_width(self, found: int) -> str:
        width, shown = len(self.columns), SEPARATORS.get(self.separator, repr(self.separator))
        names = "column" if found == 1 else "columns"
        says = f"{found} {names}, where the header has {width} (separated by {shown})"
        if found > width:
            quoted = "; put a text that holds the separator in double quotes"
            return f"{says}{quoted if self.quotes else ''}."
        return f"{says}; a text with a line end in it stands in double quotes."

    def _swallowed(self, seen: list[set[str]]) -> bool:
        """Whether the lines of one row are whole rows, were quotation marks characters.

        That is where each has as many cells as the header, and some column holds in all of them
        what it holds elsewhere: numbers, or values that came before or come again.
        """
        lines = list(csv.reader(self._raw, delimiter=self.separator, quoting=csv.QUOTE_NONE))
        if any(len(cells) != len(self.columns) for cells in lines):
            return False
        for known, *values in zip(seen, *lines, strict=True):
            plain = [value for value in values if value and '"' not in value]
            again = known | ({v for v in plain if plain.count(v) > 1})
            if len(plain) == len(values) and (
                all(re.fullmatch(r"-?\d+([.,]\d+)?", value) for value in plain)
                or again.issuperset(plain)
            ):
                return True
        return False


def _separator(header: str, own: str, *, quotes: bool) -> str:
    """The separator of ``header``: the file's own one, unless only another gives names."""

    def split(separator: str) -> list[str]:
        reader = csv.reader(
            [header.rstrip("\r\n")],
            delimiter=separator,
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        )
        return next(reader, [])

    def known(separator: str) -> int:
        cells = split(separator)
        return sum(map(is_known, cells)) if len(cells) > 1 else 0

    best = max(SEPARATORS, key=known)
    if known(best) > known(own):
        return best
    if len(split(own)) == 1:
        # Names are short: a text in the header's place is not taken apart at its commas.
        for other in SEPARATORS:
            if len(split(other)) > 1 and all(len(cell) <= 30 for cell in split(other)):
                return other
    return own

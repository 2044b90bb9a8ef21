"""The user's own data: CSV, TSV, JSON, JSON lines or Parquet, one file per split."""

from __future__ import annotations

import csv
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from adalora.errors import UserError

LABEL = "label"
# Columns that number the rows and are no text, as GLUE's files have them.
_NO_TEXT = {LABEL, "idx", "index", "id"}

Columns = tuple[str, str | None]


def _read_separated(path: Path, separator: str) -> pd.DataFrame:
    _check_rows(path, separator)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # Every cell is text first: pandas would turn "None", "NA" and "1" into something else.
        text = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        return pd.read_csv(path, sep=separator, index_col=False, **text)


def _check_rows(path: Path, separator: str) -> None:
    """Refuse what pandas would mend: it renames a second column of a name, and cuts long rows."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=separator)
        header = next(reader, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise UserError(f"{path} has two columns {twice[0]!r}; give each a name of its own.")
        for row in reader:
            if any("\0" in cell for cell in (*header, *row)):
                raise UserError(
                    f"{path}, line {reader.line_num}: a NUL character; this is not a text file."
                )
            if len(row) > len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} columns, where the header has "
                    f"{len(header)}; put a text that holds {separator!r} in double quotes."
                )


def _read_json(path: Path) -> pd.DataFrame:
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError:
        # Both forms are called .json in the wild, also by the original's documentation.
        return _read_json_lines(path)
    # {"data": [...]} is how datasets' own JSON reader lets a list be named.
    if isinstance(values, dict) and isinstance(values.get("data"), list):
        values = values["data"]
    return _frame(values)


def _read_json_lines(path: Path) -> pd.DataFrame:
    rows = []
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error}).") from error
    return _frame(rows)


def _frame(values: Any) -> pd.DataFrame:
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise ValueError("expected a list of objects, one per example")
    for number, row in enumerate(values, start=1):
        if any(isinstance(value, str) and not _is_unicode(value) for value in row.values()):
            raise ValueError(f"example {number} holds half of a surrogate pair, which is no text")
    return pd.DataFrame.from_records(values) if values else pd.DataFrame()


def _read_parquet(path: Path) -> pd.DataFrame:
    # Python's own values: pandas looks into texts when they are asked for, and finds damage then.
    return pd.read_parquet(path).astype(object)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": partial(_read_separated, separator=","),
    ".tsv": partial(_read_separated, separator="\t"),
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".json": _read_json,
}


def read_file(path: Path) -> pd.DataFrame:
    """Read one file by its extension.

    Raises:
        UserError: if the extension is unknown, or the file absent, unreadable or empty.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        known = ", ".join(_READERS)
        raise UserError(f"{path} ends in {suffix!r}; data files end in one of {known}.")
    if not path.is_file():
        raise UserError(f"The data file {str(path)!r} does not exist.")
    try:
        frame = _READERS[suffix](path)
    except UserError:
        raise
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, about line {line}: not UTF-8; save the file as UTF-8.") from error
    except Exception as error:  # pandas and pyarrow raise classes of their own
        text = " ".join(str(error).split())
        raise UserError(f"{path} could not be read as {suffix[1:]}: {text[:200]}") from error
    if frame.empty:
        raise UserError(f"{path} holds no examples.")
    frame.columns = [str(column) for column in frame.columns]
    if odd := [name for name in frame.columns if "\0" in name or not _is_unicode(name)]:
        raise UserError(f"{path} has a column {odd[0]!r:.60}, which is no name; give it another.")
    return frame


def text_columns(frame: pd.DataFrame, path: Path, wanted: Columns | None = None) -> Columns:
    """Which columns hold the texts.

    Those of the GLUE task if one is named and the file has them; else ``sentence1`` and
    ``sentence2``; else the first one or two columns other than the label, as in the original.

    Raises:
        UserError: if there is no text column.
    """
    names = [name for name in frame.columns if name.lower() not in _NO_TEXT]
    for first, second in [*([wanted] if wanted else []), ("sentence1", "sentence2")]:
        if first in names and (second is None or second in names):
            return first, second
    if not names:
        raise UserError(f"{path} has no column of text; its columns are {_listed(frame.columns)}.")
    return names[0], names[1] if len(names) > 1 else None


def texts(frame: pd.DataFrame, column: str, path: Path) -> list[str]:
    """The texts of one column.

    Raises:
        UserError: if the column is missing, or a cell is empty of a value or no text.
    """
    if column not in frame.columns:
        raise UserError(
            f"{path} has no column {column!r}, which the training file has; its columns are "
            f"{_listed(frame.columns)}."
        )
    values = frame[column].tolist()
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise UserError(
                f"{path}, example {number}: {column!r} is {value!r:.60} where a text is expected."
            )
    return values


def labels(frame: pd.DataFrame, path: Path) -> list[Any]:
    """The labels as int, float or str; numbers written as text become numbers.

    Raises:
        UserError: if the column ``label`` is missing, or a label is.
    """
    if LABEL not in frame.columns:
        raise UserError(
            f"{path} has no column {LABEL!r}; its columns are {_listed(frame.columns)}."
        )
    values = [value.item() if hasattr(value, "item") else value for value in frame[LABEL]]
    for number, value in enumerate(values, start=1):
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or not isinstance(value, str | int | float) or value == "":
            raise UserError(f"{path}, example {number}: the label is missing ({value!r:.60}).")
        if isinstance(value, float) and math.isinf(value):
            raise UserError(f"{path}, example {number}: the label is {value}, which is no number.")
    if all(isinstance(value, str) for value in values):
        values = _as_numbers(values, path)
    for number, value in enumerate(values, start=1):
        if isinstance(value, int) and abs(value) > 2**63:
            raise UserError(f"{path}, example {number}: the label {value!s:.40} is too large.")
    return [str(value) if isinstance(value, bool) else value for value in values]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_numbers(values: Sequence[str], path: Path) -> list[Any]:
    for kind in (int, float):
        try:
            numbers = [kind(value) for value in values]
        except ValueError:
            continue
        finite = [isinstance(number, int) or math.isfinite(number) for number in numbers]
        if all(finite):
            return numbers
        if any(finite):
            bad = finite.index(False)
            raise UserError(
                f"{path}, example {bad + 1}: the label is {values[bad]!r:.60} among numbers; every "
                "label must be a number then."
            )
    return list(values)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)

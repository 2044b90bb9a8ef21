"""Reading the official GLUE download: tab-separated files with quirks of their own.

Quotes are characters, not quoting; MRPC begins with a byte order mark; CoLA has no header; QQP has
rows that are too short; "None" and "NA" are texts; U+2028 ends no line.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from pathlib import Path
from typing import Any

from adalora.errors import UserError
from adalora.glue.tasks import Layout, Task

logger = logging.getLogger(__name__)


def find_file(data_dir: Path, task: Task, file_name: str) -> Path | None:
    """The task's file under the GLUE root or the task's own folder, whatever the letters' case.

    Raises:
        UserError: if ``data_dir`` is no folder.
    """
    if not data_dir.is_dir():
        raise UserError(
            f"--data_dir {str(data_dir)!r} is no folder; name the one of the official GLUE "
            f"download, which holds {task.folder}/."
        )
    names = {task.folder.lower(), task.name}
    folders = [child for child in sorted(data_dir.iterdir()) if child.name.lower() in names]
    for folder in [*folders, data_dir]:
        if folder.is_dir():
            for child in sorted(folder.iterdir()):
                if child.name.lower() == file_name and child.is_file():
                    return child
    return None


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(line number from 1, columns) of every line that is not empty.

    Raises:
        UserError: if the file cannot be read or is not UTF-8; the line is named.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: byte {raw[error.start]:#04x} is not UTF-8; save the file as "
            "UTF-8."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {line}: a NUL character; this is not a text file.")
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n"
    )
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}.") from error


def read_split(path: Path, task: Task, layout: Layout) -> list[dict[str, Any]]:
    """Rows with the Hub's column names; ``label`` is -1 where the file has none.

    Raises:
        UserError: if a row is too short or a label unknown; file and line are named.
    """
    lines = read_rows(path)
    if layout.header:
        lines = lines[1:]
    rows: list[dict[str, Any]] = []
    short = 0
    for number, columns in lines:
        if len(columns) < layout.width:
            if task.skip_short_rows:
                short += 1
                continue
            raise UserError(
                f"{path}, line {number}: {len(columns)} columns where {task.name} has at least "
                f"{layout.width}; the file is damaged, or of another task."
            )
        row: dict[str, Any] = {task.sentence1_key: columns[layout.sentence1]}
        if task.sentence2_key is not None and layout.sentence2 is not None:
            row[task.sentence2_key] = columns[layout.sentence2]
        row["label"] = _label(columns, layout, task, f"{path}, line {number}")
        row["idx"] = len(rows)
        rows.append(row)
    if short:
        logger.warning("%s: %d rows are too short and were left out.", path, short)
    if not rows:
        raise UserError(f"{path} holds no examples.")
    return rows


def _label(columns: list[str], layout: Layout, task: Task, place: str) -> int | float:
    if layout.label is None:
        return -1.0 if task.labels is None else -1
    word = columns[layout.label].strip()
    if task.labels is None:
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 5:
            raise UserError(f"{place}: the score {word!r} is not a number between 0 and 5.")
        return value
    if task.numeric_labels:
        # No class has a number of that many digits, and Python refuses to read thousands.
        if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(task.labels):
            return int(word)
        expected = ", ".join(str(index) for index in range(len(task.labels)))
    else:
        if word in task.labels:
            return task.labels.index(word)
        expected = ", ".join(task.labels)
    raise UserError(f"{place}: the label {word!r} is not one of {expected}.")

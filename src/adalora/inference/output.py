"""Predictions on disk or on the standard output: TSV, CSV or JSON lines, a row for each input."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from adalora.errors import UserError
from adalora.inference.classifier import Answer, Prediction
from adalora.inference.texts import Row
from adalora.storage.atomic import atomic_write

FORMATS = ("tsv", "csv", "jsonl")
_DIGITS = 6

Write = Callable[[Sequence[Row], Sequence[Answer]], None]


def check_target(path: Path, *, force: bool) -> None:
    """Refuse a file that exists, unless ``force``, and a folder that cannot be written to.

    Raises:
        UserError: before any work.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file.")
    if path.exists() and not force:
        raise UserError(f"--output {path} exists already; name another; --overwrite replaces it.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {path}: the folder {path.parent} cannot be written to.")


@contextlib.contextmanager
def opened(path: Path | None, *, force: bool = False) -> Iterator[TextIO]:
    """A stream to ``path``, which appears whole at the end or not at all; or the standard output.

    Raises:
        UserError: if it cannot be written.
    """
    if path is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace", newline="")
        yield sys.stdout
        sys.stdout.flush()
        return
    check_target(path, force=force)
    try:
        check = functools.partial(check_target, path, force=force)
        with (
            atomic_write(path, before_replacing=check) as new,
            new.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream,
        ):
            yield stream
    except OSError as error:
        raise UserError(
            f"--output {path} could not be written ({error.strerror or error}); nothing was left."
        ) from error


def writer(
    stream: TextIO, form: str, labels: Sequence[str] | None, text_columns: Sequence[str] = ()
) -> Write:
    """A function that writes rows and their answers; the header is written at once.

    Args:
        stream: open for text.
        form: one of ``FORMATS``.
        labels: of the classifier, None for regression.
        text_columns: names under which the texts are repeated; () leaves them out.
    """
    if form == "jsonl":

        def write_objects(rows: Sequence[Row], answers: Sequence[Answer]) -> None:
            for row, answer in zip(rows, answers, strict=True):
                texts = dict(zip(text_columns, row.texts, strict=False))
                value = {"index": row.number - 1, **texts, **_as_json(answer)}
                stream.write(json.dumps(value, ensure_ascii=False) + "\n")
            stream.flush()

        return write_objects

    table: Any = csv.writer(
        stream, delimiter="," if form == "csv" else "\t", lineterminator="\n", strict=True
    )
    answer_columns = ["value"] if labels is None else ["label", *(f"p_{name}" for name in labels)]
    table.writerow(["index", *text_columns, *answer_columns])

    def write_cells(rows: Sequence[Row], answers: Sequence[Answer]) -> None:
        for row, answer in zip(rows, answers, strict=True):
            texts = row.texts[: len(text_columns)]
            table.writerow([row.number - 1, *texts, *_as_cells(answer)])
        stream.flush()

    return write_cells


def _as_json(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Prediction):
        rounded = {name: round(value, _DIGITS) for name, value in answer.probabilities.items()}
        return {"label": answer.label, "probabilities": rounded}
    return {"value": round(answer, _DIGITS)}


def _as_cells(answer: Answer) -> list[str]:
    if isinstance(answer, Prediction):
        return [answer.label, *(f"{p:.{_DIGITS}f}" for p in answer.probabilities.values())]
    return [f"{answer:.{_DIGITS}f}"]

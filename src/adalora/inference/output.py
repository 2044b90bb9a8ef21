"""Predictions as TSV, CSV or JSON lines, a row for each input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from adalora.data.table_reader import Texts
from adalora.inference.classifier import Answer, Prediction

FORMATS = ("tsv", "csv", "jsonl")
_DIGITS = 6

Write = Callable[[Sequence[Texts], Sequence[Answer]], None]


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

        def write_objects(rows: Sequence[Texts], answers: Sequence[Answer]) -> None:
            for row, answer in zip(rows, answers, strict=True):
                texts = dict(zip(text_columns, row.texts, strict=False))
                value = {"index": row.number - 1, **texts, **_as_json(answer)}
                stream.write(json.dumps(value, ensure_ascii=False) + "\n")
            stream.flush()

        return write_objects

    # The module quotes a cell for a character that ends lines, and "\r" is one when they are read.
    table: Any = csv.writer(
        _PlainEnds(stream), delimiter="," if form == "csv" else "\t", lineterminator="\r\n"
    )
    answer_columns = ["value"] if labels is None else ["label", *(f"p_{name}" for name in labels)]
    table.writerow(["index", *text_columns, *answer_columns])

    def write_cells(rows: Sequence[Texts], answers: Sequence[Answer]) -> None:
        for row, answer in zip(rows, answers, strict=True):
            texts = row.texts[: len(text_columns)]
            table.writerow([row.number - 1, *texts, *_as_cells(answer)])
        stream.flush()

    return write_cells


class _PlainEnds:
    """Rows that end in a carriage return and a line feed, written with the line feed alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, row: str) -> None:
        self._stream.write(row.removesuffix("\r\n") + "\n")


def _as_json(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Prediction):
        rounded = {name: round(value, _DIGITS) for name, value in answer.probabilities.items()}
        return {"label": answer.label, "probabilities": rounded}
    return {"value": round(answer, _DIGITS)}


def _as_cells(answer: Answer) -> list[str]:
    if isinstance(answer, Prediction):
        return [answer.label, *(f"{p:.{_DIGITS}f}" for p in answer.probabilities.values())]
    return [f"{answer:.{_DIGITS}f}"]

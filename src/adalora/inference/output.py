"""Predictions as TSV, CSV or JSON lines, a row for each input."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from adalora.inference.classifier import Answer, Prediction
from adalora.inference.texts import Row

FORMATS = ("tsv", "csv", "jsonl")
_DIGITS = 6

Write = Callable[[Sequence[Row], Sequence[Answer]], None]


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

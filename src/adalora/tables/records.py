"""The same tables as flat records, one figure each, for programs to read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adalora.tables.columns import CONVENTIONS
from adalora.tables.differences import Difference, Differences
from adalora.tables.paper import PaperTable
from adalora.tables.rows import Row, Spread
from adalora.tables.scores import ScoreTable

__all__ = ["difference_records", "paper_records", "score_records"]

Record = dict[str, Any]
_COUNTS = ("adapter_initial", "adapter_kept", "head", "trained", "total")


def score_records(table: ScoreTable) -> Iterator[Record]:
    """One record for each figure and average, in percent."""
    for index, row in enumerate(table.rows):
        for task, columns in table.columns.items():
            flags = " ".join(table.marks.get((index, task), ()))
            for column in columns:
                figure = table.figures.get((index, column.title))
                yield _record(table.epoch, row, column.title, figure) | {"flags": flags}
        for convention in CONVENTIONS:
            average = table.averages.get((index, convention))
            yield _record(table.epoch, row, f"average ({convention})", average) | {
                "averaged": " ".join(table.averaged)
            }


def _record(kind: str, row: Row, column: str, figure: Spread | None) -> Record:
    return {
        "table": kind,
        "base_model": row.base_model,
        "method": row.label,
        "column": column,
        "mean": None if figure is None else figure.mean,
        "deviation": None if figure is None else figure.deviation,
        "n": 0 if figure is None else figure.n,
        **{name: row.parameters(name) for name in _COUNTS},
    }


def difference_records(found: Differences, level: float) -> Iterator[Record]:
    """One record for each difference to the baseline, in percentage points."""
    averages = {(i, f"average ({name})"): one for (i, name), one in found.averages.items()}
    cells: dict[tuple[int, str], Difference] = {**found.cells, **averages}
    for (index, column), one in cells.items():
        yield {
            "table": "difference",
            "base_model": found.rows[index].base_model,
            "method": found.rows[index].label,
            "column": column,
            "mean": one.value,
            "n": one.seeds,
            "against": found.rows[found.baseline].label,
            "low": one.low,
            "high": one.high,
            "level": level,
        }


def paper_records(name: str, table: PaperTable, base_model: str) -> Iterator[Record]:
    """One record for each figure that the paper prints."""
    for (method, size), figures in table.rows.items():
        for column, value in figures.items():
            yield {
                "table": f"paper, {name}",
                "base_model": base_model,
                "method": f"{method} {size}",
                "column": column,
                "mean": value,
            }

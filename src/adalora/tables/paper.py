"""The rows of the AdaLoRA paper's tables, as printed (``paper.yaml``), and as lines of CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper."""

    title: str  #: which one, and what it is about
    #: (method, parameters or share of them as printed) -> {column: percent}
    rows: Mapping[tuple[str, str], Mapping[str, float]]


@cache
def _file() -> dict[str, object]:
    content = Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(content))


def paper_base_model() -> str:
    """The model that all its GLUE tables are about."""
    return str(_file()["base_model"])


def paper_table(name: str) -> PaperTable:
    """``table1``, ``table4`` or ``table5``, figures in percent.

    Raises:
        KeyError: if ``paper.yaml`` has no table of that name.
    """
    content = _file()[name]
    assert isinstance(content, dict)
    rows = {
        (str(method), str(size)): dict(zip(content["columns"], figures, strict=True))
        for method, size, *figures in content["rows"]
    }
    return PaperTable(f"{content['title']}, {_file()['source']}", rows)


def paper_records(name: str, table: PaperTable, base_model: str) -> Iterator[dict[str, Any]]:
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

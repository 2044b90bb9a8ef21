"""The rank pattern as a table: a layer a row, a kind of matrix a column.

Rows and columns come from the module paths alone, so that any architecture with numbered layers is
shown; matrices outside a numbered layer get a row of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

__all__ = ["rank_table"]

# The ends of module paths, longest first where one is part of another, and the original's names.
_KINDS = (
    ("attention.output.dense", "attention.output"),
    ("intermediate.dense", "intermediate"),
    ("output.dense", "layer.output"),
    ("query_proj", "query"),
    ("key_proj", "key"),
    ("value_proj", "value"),
    ("query", "query"),
    ("key", "key"),
    ("value", "value"),
)


def _split(path: str) -> tuple[str, str]:
    """Return (row, column) of a parameter path such as ``encoder.layer.3.…query_proj.lora_E``."""
    parts = path.removesuffix(".lora_E").split(".")
    numbered = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbered:
        return ".".join(parts), "rank"
    first = numbered[0]
    tail = ".".join(parts[first + 1 :]) or "weight"
    for ending, kind in _KINDS:
        if tail == ending or tail.endswith("." + ending):
            return parts[first], kind
    return parts[first], tail


def rank_table(rank_pattern: Mapping[str, int], init_rank: int) -> Table:
    """Return the kept ranks as a table with totals.

    Args:
        rank_pattern: kept triplets of each matrix, keyed by the path of its ``lora_E``.
        init_rank: triplets that each matrix began with.
    Raises:
        ValueError: if the pattern is empty or holds a rank outside 0..init_rank.
    """
    if not rank_pattern:
        raise ValueError("the rank pattern is empty: no matrix was adapted")
    cells: dict[str, dict[str, int]] = {}
    columns: list[str] = []
    for path, rank in rank_pattern.items():
        if not 0 <= rank <= init_rank:
            raise ValueError(f"rank {rank} of {path} lies outside 0..{init_rank} (init_rank)")
        row, column = _split(path)
        if column in cells.get(row, {}):
            # Two matrices would share a cell (stacks numbered alike): the path tells them apart.
            row, column = path.removesuffix(".lora_E"), "rank"
        cells.setdefault(row, {})[column] = rank
        if column not in columns:
            columns.append(column)
    total, full = sum(rank_pattern.values()), init_rank * len(rank_pattern)
    table = Table(
        title=f"Ranks kept of {init_rank} per matrix ({total} of {full} triplets)",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_footer=True,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("layer", "total", justify="right", overflow="fold")
    for column in columns:
        heading = column.replace(".", ".\n") if len(columns) > 3 else column
        column_total = sum(row.get(column, 0) for row in cells.values())
        table.add_column(Text(heading), str(column_total), justify="right", overflow="fold")
    table.add_column("all", str(total), justify="right")
    for row_name, ranks in cells.items():
        values = (str(ranks[column]) if column in ranks else "" for column in columns)
        table.add_row(Text(row_name), *values, str(sum(ranks.values())))
    return table

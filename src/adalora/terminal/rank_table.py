"""The rank pattern as a table: a layer a row, a kind of matrix a column."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from adalora.results.places import arrange

__all__ = ["rank_table"]


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
    places = arrange(rank_pattern)
    columns = list(dict.fromkeys(place.kind for place in places.values()))
    for path, rank in rank_pattern.items():
        if not 0 <= rank <= init_rank:
            raise ValueError(f"rank {rank} of {path} lies outside 0..{init_rank} (init_rank)")
        cells.setdefault(places[path].layer, {})[places[path].kind] = rank
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
        # A name is no markup, whatever brackets it holds.
        table.add_column(Text(heading), str(column_total), justify="right", overflow="fold")
    table.add_column("all", str(total), justify="right")
    for row_name, ranks in cells.items():
        values = (str(ranks[column]) if column in ranks else "" for column in columns)
        table.add_row(Text(row_name), *values, str(sum(ranks.values())))
    return table

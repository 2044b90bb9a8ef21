"""Grids as terminal tables, Markdown or LaTeX, and everything as lines of CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adalora.results.columns import CONVENTIONS
from adalora.tables.grids import COUNTS, Grid, paper_base_model, paper_table

if TYPE_CHECKING:
    from rich.console import Console

    from adalora.results.differences import Difference, Differences
    from adalora.results.rows import Row, Spread
    from adalora.results.scores import ScoreTable

#: Ending of ``--output`` -> the format that it means.
SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv"}
# For outputs that cannot show them.
_ASCII = str.maketrans(
    {"±": "+/-", "→": "->", "–": "-", "°": "o"}
    | {"†": "a)", "‡": "b)", "§": "c)", "¶": "d)", "‖": "e)"}
)
_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
    | {"±": r"$\pm$", "→": r"$\rightarrow$", "–": "--", "*": r"$^*$", "<": "$<$", ">": "$>$"}
    | {"†": r"$^\dagger$", "‡": r"$^\ddagger$", "°": r"$^\circ$"}
    | {"§": r"$^\S$", "¶": r"$^\P$", "‖": r"$^\|$"}
)


def print_grid(console: Console, grid: Grid) -> None:
    """Print at the console's width: columns that do not fit follow in a block of their own."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not console.encoding.lower().startswith("utf"):
        grid = _ascii(grid)
    console.print(Text(grid.title, style="bold"))
    for columns in _blocks(grid, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for column in columns:
            justify: Any = "right" if column else "left"
            table.add_column(Text(grid.header[column]), justify=justify, overflow="fold")
        for number, row in enumerate(grid.rows):
            cells = (Text(row[column]) for column in columns)
            table.add_row(*cells, end_section=number + 1 == grid.rule)
        console.print(table)
    for note in grid.notes:
        console.print(Text(f"- {note}"))
    console.print()


def _ascii(grid: Grid) -> Grid:
    def said(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(text.translate(_ASCII) for text in texts)

    rows = tuple(said(row) for row in grid.rows)
    title = grid.title.translate(_ASCII)
    return replace(grid, title=title, header=said(grid.header), rows=rows, notes=said(grid.notes))


def _blocks(grid: Grid, width: int) -> list[list[int]]:
    """Indices of columns, the first being in every block, so that each block fits if it can."""
    widths = [
        max(len(grid.header[column]), *(len(row[column]) for row in grid.rows), 0) + 3
        for column in range(len(grid.header))
    ]
    blocks, used = [[0]], widths[0]
    for column in range(1, len(widths)):
        if used + widths[column] > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(column)
        used += widths[column]
    return blocks


def markdown(grid: Grid) -> str:
    """A heading, a pipe table and the notes as a list."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"

    lines = [f"### {_escaped(grid.title)}", "", line(grid.header)]
    lines.append("|" + "|".join(["---", *["---:"] * (len(grid.header) - 1)]) + "|")
    lines += [line(row) for row in grid.rows]
    lines += ["", *(f"- {_escaped(note)}" for note in grid.notes), ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    for sign in ("\\", "|", "*", "_", "<"):
        text = text.replace(sign, f"\\{sign}")
    return text


def latex(grid: Grid) -> str:
    """A ``table`` environment for the booktabs package, the notes below."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cell.translate(_LATEX) for cell in cells) + r" \\"

    lines = [
        r"\begin{table}",
        rf"\caption{{{grid.title.translate(_LATEX)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
        r"\toprule",
        line(grid.header),
        r"\midrule",
    ]
    for number, row in enumerate(grid.rows):
        lines += [r"\midrule"] if number == grid.rule else []
        lines.append(line(row))
    lines += [r"\bottomrule", r"\end{tabular}", ""]
    lines += [rf"{note.translate(_LATEX)}\par" for note in grid.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """Lines with one header, the union of the records' names in the order of their coming."""
    names = list(dict.fromkeys(name for record in records for name in record))
    out = io.StringIO()
    table = csv.DictWriter(out, names, lineterminator="\n")
    table.writeheader()
    table.writerows(records)
    return out.getvalue()


Record = dict[str, Any]


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
        **{name: row.parameters(name) for name in COUNTS},
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
            "interval": "none" if one.low is None else "full" if one.examples else "seeds alone",
        }


def paper_records(name: str) -> Iterator[Record]:
    """One record for each figure of a table that the paper prints."""
    for (method, size), figures in paper_table(name).rows.items():
        for column, value in figures.items():
            yield {
                "table": f"paper, {name}",
                "base_model": paper_base_model(),
                "method": f"{method} {size}",
                "column": column,
                "mean": value,
            }

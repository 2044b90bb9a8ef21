"""Tables as text: scores, parameters, differences, and the paper's as printed, with their notes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from adalora.results.columns import CONVENTIONS, task_score, task_title
from adalora.results.scores import FAILED, GUARDS

if TYPE_CHECKING:
    from adalora.results.differences import Difference, Differences
    from adalora.results.rows import Row, Spread
    from adalora.results.scores import ScoreTable

#: Guard -> the sign that marks a figure.
_SIGNS = dict(zip(GUARDS, ("†", "‡", "§", "¶", "‖", "#", "*"), strict=True))
_EMPTY = "–"
#: Of a record's parameters, in the order to show.
COUNTS = ("adapter_initial", "adapter_kept", "head", "trained", "total")


@dataclass(frozen=True)
class Grid:
    """A table of text with its title and its notes; a rule is drawn before row ``rule``."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    rule: int | None = None


def _averages(table: ScoreTable | Differences) -> dict[str, str]:
    """Convention -> heading of its average; one alone where they are the same, none without any."""
    if not table.averaged:
        return {}
    if all(len(table.columns[task]) == 1 for task in table.averaged):
        return {next(iter(CONVENTIONS)): "average"}
    return {convention: f"average ({convention})" for convention in CONVENTIONS}


# ---- scores ----


def score_grid(table: ScoreTable, paper: PaperTable | None = None) -> Grid:
    """Mean and deviation by row and column, the averages, and what the reader must know."""
    titles = [column.title for columns in table.columns.values() for column in columns]
    same = len(table.seeds) == 1
    rows = [
        tuple(_score_cells(table, index, show_seeds=not same)) for index in range(len(table.rows))
    ]
    rule = None
    if paper is not None:
        rule = len(rows)
        rows += [
            (f"{method} {size} (paper)", *_paper_cells(table, titles, figures))
            for (method, size), figures in paper.rows.items()
        ]
    return Grid(
        title=f"{table.base_model}, {table.epoch} epoch",
        header=("method", *titles, *_averages(table).values()),
        rows=tuple(rows),
        notes=tuple(_score_notes(table, paper)),
        rule=rule,
    )


def _score_cells(table: ScoreTable, index: int, *, show_seeds: bool) -> Iterator[str]:
    yield table.rows[index].label
    for task, columns in table.columns.items():
        signs = "".join(
            _SIGNS[kind] for kind in GUARDS if kind in table.marks.get((index, task), ())
        )
        for column in columns:
            figure = table.figures.get((index, column.title))
            yield (_EMPTY if figure is None else _spread(figure, show_seeds=show_seeds)) + signs
    for convention in _averages(table):
        average = table.averages.get((index, convention))
        yield _EMPTY if average is None else _spread(average, show_seeds=False)


def _paper_cells(
    table: ScoreTable, titles: Sequence[str], figures: Mapping[str, float]
) -> Iterator[str]:
    for title in titles:
        yield f"{figures[title]:.2f}" if title in figures else _EMPTY
    for convention in _averages(table):
        average = _paper_average(table, figures, convention)
        yield _EMPTY if average is None else f"{average:.2f}"


def _paper_average(
    table: ScoreTable, figures: Mapping[str, float], convention: str
) -> float | None:
    """Of the paper's figures, over the very tasks that the table's averages are over."""
    tasks = [[column.title for column in table.columns[task]] for task in table.averaged]
    if not tasks or any(title not in figures for titles in tasks for title in titles):
        return None
    scores = [task_score([figures[title] for title in titles], convention) for titles in tasks]
    return sum(scores) / len(scores)


def _spread(figure: Spread, *, show_seeds: bool) -> str:
    deviation = "" if figure.deviation is None else f"±{figure.deviation:.2f}"
    return f"{figure.mean:.2f}{deviation}" + (f" ({figure.n})" if show_seeds else "")


def _score_notes(table: ScoreTable, paper: PaperTable | None) -> Iterator[str]:
    seeds = table.seeds
    count = f"n = {next(iter(seeds))}" if len(seeds) == 1 else "n in parentheses after each figure"
    yield (
        f"Percent on the development sets; mean ± standard deviation over n seeds ({count}; "
        "ddof = 1, so none is given for one seed)."
    )
    units = {c.title: c.unit for columns in table.columns.values() for c in columns}
    yield "Metrics: " + "; ".join(f"{title} {unit}" for title, unit in units.items()) + "."
    yield from _average_notes(table)
    if table.epoch == "best":
        yield (
            "Best epoch: of each run's evaluations the one with the best main metric, chosen on "
            "the set that it is reported on, which flatters every method. Figures that were not "
            "evaluated during training, such as MNLI-mm's, have no best epoch."
        )
    else:
        yield "Last epoch: the model as training left it; nothing was chosen by its score."
    yield from _mark_notes(table)
    yield from _difference_notes(table.rows)
    if paper is not None:
        yield (
            f"Rows marked (paper): {paper.title}; figures as printed, without deviations, the "
            "averages worked out here over the same tasks as ours. Its parameters leave out the "
            "pooler and the classifier. Whether they are of the last or of the best epoch, our "
            "source does not say."
        )


def _average_notes(table: ScoreTable | Differences) -> Iterator[str]:
    if not table.averaged:
        yield "No averages: there is no task that every row has."
        return
    left_out = [task_title(task) for task in table.columns if task not in table.averaged]
    rest = f"; not {', '.join(left_out)}" if left_out else ""
    if len(_averages(table)) == 1:
        conventions = "It is the same in the paper's convention and in that of later papers."
    else:
        conventions = "; ".join(f"{name}: {text}" for name, text in CONVENTIONS.items()) + "."
    names = ", ".join(map(task_title, table.averaged))
    yield f"Average over {names}, the tasks that every row has{rest}. {conventions}"


def _mark_notes(table: ScoreTable) -> Iterator[str]:
    for kind, meaning in GUARDS.items():
        places = [
            f"{table.rows[index].label} on {task_title(task)} (seed {', '.join(map(str, seeds))})"
            for (index, task), found in table.marks.items()
            if (seeds := found.get(kind))
        ]
        if places:
            subject = meaning if kind == FAILED else f"a run of it was flagged: {meaning}"
            yield f"{_SIGNS[kind]} {subject}: {'; '.join(places)}."


def _difference_notes(rows: Sequence[Row]) -> Iterator[str]:
    """Which flags the runs of a row do not share; rows of which the same is true are told once."""
    labels: dict[str, list[str]] = {}
    for row in rows:
        told = "; ".join(
            f"{flag} " + ", ".join(f"{task_title(task)} {value}" for task, value in values.items())
            for flag, values in row.differences.items()
        )
        labels.setdefault(told, []).append(row.label)
    for told, names in labels.items():
        if told:
            yield f"Flags that differ between the tasks of {', '.join(names)}: {told}."


# ---- parameters ----


def parameter_grid(rows: Sequence[Row]) -> Grid:
    """Trained parameters, counted the same way for every method."""

    def cells(row: Row) -> tuple[str, ...]:
        counts = {name: row.parameters(name) for name in COUNTS}
        share = 100 * counts["trained"] / counts["total"]
        runs = len(row.all_runs)
        return (row.label, *(f"{round(n):,}" for n in counts.values()), f"{share:.3f}%", f"{runs}")

    counts = ("adapter", "of it kept", "head", "trained", "total", "trained/total")
    return Grid(
        title=f"{rows[0].base_model}, parameters",
        header=("method", *counts, "runs"),
        rows=tuple(cells(row) for row in rows),
        notes=(
            "adapter: what the method trains outside the head, as training begins; of it kept: "
            "without pruned triplets; head: pooler and classifier; trained = adapter + head; "
            "total: of the whole model. Means over the runs of a row, which differ where tasks "
            "have other numbers of classes or runs keep other matrices.",
        ),
    )


# ---- differences ----


def difference_grid(found: Differences, *, level: float, resamples: int, seed: int) -> Grid:
    """Every row less the baseline, with its interval."""
    from adalora.results.bootstrap import LEAST_SEEDS  # with scipy, which other tables do not need

    baseline = found.rows[found.baseline]
    titles = [column.title for columns in found.columns.values() for column in columns]
    rows = []
    for index, row in enumerate(found.rows):
        if index != found.baseline:
            cells = [_difference(found.cells.get((index, title))) for title in titles]
            averages = [_difference(found.averages.get((index, name))) for name in _averages(found)]
            rows.append((row.label, *cells, *averages))
    every = [*found.cells.values(), *found.averages.values()]
    judged = sum(one.low is not None and one.examples for one in every)
    pairs = map(str, sorted({one.seeds for one in found.cells.values()}))
    notes = [
        f"Percentage points above {baseline.label}, for the models that the runs left. Brackets: "
        f"{100 * level:g}% interval from the spread over pairs of runs of one seed (Student's t) "
        f"and a paired bootstrap over the examples ({resamples:,} replicates, seed {seed}), "
        f"combined as by Banerjee (1960). None is given below {LEAST_SEEDS} pairs "
        f"({' or '.join(pairs) or 'none'} here): what the seeds do by chance would not be known."
    ]
    if judged:
        notes.append(
            f"! the interval leaves out 0. Of {judged} intervals up to {judged * (1 - level):.1f} "
            "would by chance alone."
        )
    if any(one.low is not None and not one.examples for one in every):
        notes.append(
            "° predictions of a run are not there: the interval is for these very examples, with "
            "the chance of the seeds alone, and too narrow for the task. No mark is given by it."
        )
    notes += [*_average_notes(found), *(f"{_EMPTY} {text}" for text in found.missing)]
    return Grid(
        title=f"{baseline.base_model}, difference to {baseline.label}",
        header=("method", *titles, *_averages(found).values()),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _difference(one: Difference | None) -> str:
    if one is None:
        return _EMPTY
    if one.low is None or one.high is None:
        return f"{one.value:+.2f}"
    sign = "!" if one.marked else "" if one.examples else "°"
    return f"{one.value:+.2f} [{one.low:+.2f}, {one.high:+.2f}]{sign}"


# ---- the paper's tables ----


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
    """``table1``, ``table4`` or ``table5``, figures in percent; KeyError for another name."""
    content = _file()[name]
    assert isinstance(content, dict)
    rows = {
        (str(method), str(size)): dict(zip(content["columns"], figures, strict=True))
        for method, size, *figures in content["rows"]
    }
    return PaperTable(f"{content['title']}, {_file()['source']}", rows)


def paper_grid(name: str) -> Grid:
    """A table of the paper by itself, as printed."""
    table = paper_table(name)
    columns = list(next(iter(table.rows.values())))
    return Grid(
        title=f"The paper's {table.title}",
        header=("method", "parameters", *columns),
        rows=tuple(
            (method, size, *(f"{figures[column]:.2f}" for column in columns))
            for (method, size), figures in table.rows.items()
        ),
        notes=(
            "As printed, on microsoft/deberta-v3-base; the parameters are a share of the whole "
            "model, without pooler and classifier. MNLI (mean) is of matched and mismatched.",
        ),
    )

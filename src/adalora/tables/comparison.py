"""What differs between two runs: flags, versions, hardware, and what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adalora.errors import UserError
from adalora.glue.predictions import result_name
from adalora.results.history import read_predictions
from adalora.results.rows import row_label
from adalora.results.sources import Run
from adalora.results.words import arrange

#: What, in the first run, in the second, the second less the first.
Line = tuple[str, str, str, str]
_ABSENT = "–"
# What is another in every run, and says nothing.
_OWN = {"root_output_dir", "output_dir", "run_name", "overwrite_output_dir"}


@dataclass(frozen=True)
class Section:
    """Lines under a title, or a remark alone."""

    title: str
    lines: tuple[Line, ...]
    remark: str = ""


def comparison(first: Run, second: Run) -> list[Section]:
    """Everything that differs, and the outcome whether it differs or not."""
    a, b = first.record, second.record
    settings = [
        ("folder", first.folder, second.folder),
        ("method", row_label(first), row_label(second)),
        ("task", first.task, second.task),
        ("base model", a.base_model, b.base_model),
        ("seed", a.seed, b.seed),
    ]
    flags = _unlike(_shown_flags(first), _shown_flags(second), absent="default")
    surroundings = _unlike(
        {**a.versions, **a.hardware, "code revision": a.revision},
        {**b.versions, **b.hardware, "code revision": b.revision},
    )
    return [
        Section("Runs", tuple((name, str(x), str(y), "") for name, x, y in settings)),
        _section("Flags", flags, "The same flags."),
        _section("Versions and hardware", surroundings, "The same versions and hardware."),
        Section("Scores", tuple(_scores(a.scores, b.scores))),
        _agreement(first, second),
        Section("Parameters", tuple(_numbers(a.parameters, b.parameters))),
        _ranks(first, second),
        Section("Training", tuple(_training(first, second))),
        Section("Warnings", tuple(_warnings(first, second)), "None."),
    ]


def _shown_flags(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.record.flags.items() if name not in _OWN}


def _unlike(a: Mapping[str, Any], b: Mapping[str, Any], absent: str = _ABSENT) -> Iterator[Line]:
    for name in sorted({*a, *b}):
        if a.get(name) != b.get(name):
            yield name, _text(a.get(name, absent)), _text(b.get(name, absent)), ""


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return _ABSENT if value is None else str(value)


def _section(title: str, lines: Iterator[Line], otherwise: str) -> Section:
    found = tuple(lines)
    return Section(title, found, "" if found else otherwise)


def _scores(
    a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]
) -> Iterator[Line]:
    for split in dict.fromkeys([*a, *b]):
        for epoch in ("last", "best"):
            ours = a.get(split, {}).get(epoch) or {}
            theirs = b.get(split, {}).get(epoch) or {}
            for name, x, y, gap in _numbers(ours, theirs, digits=4):
                yield f"{split}, {name}, {epoch} epoch", x, y, gap
        ours, theirs = ({"majority class": one.get(split, {}).get("majority")} for one in (a, b))
        for name, x, y, gap in _numbers(ours, theirs, digits=4):
            yield f"{split}, {name}", x, y, gap


def _numbers(a: Mapping[str, Any], b: Mapping[str, Any], digits: int = 2) -> Iterator[Line]:
    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.{digits}f}"
        return f"{value:,}" if isinstance(value, int) else _text(value)

    for name in dict.fromkeys([*a, *b]):
        x, y = a.get(name), b.get(name)
        if x is None and y is None:
            continue
        gap = ""
        if isinstance(x, int | float) and isinstance(y, int | float) and x != y:
            gap = f"+{shown(y - x)}" if y > x else shown(y - x)
        yield name.replace("_", " "), shown(x), shown(y), gap


def _training(first: Run, second: Run) -> Iterator[Line]:
    costs, losses = [], []
    for record in (first.record, second.record):
        memory = record.peak_memory_bytes
        costs.append(
            {
                "steps": record.steps,
                "epochs": record.epochs,
                "seconds": record.seconds,
                "tokens_per_second": record.tokens_per_second,
                "peak memory, MiB": None if memory is None else memory / 2**20,
                "mask_events": record.mask_events,
            }
        )
        losses.append({"train_loss": record.train_loss, "eval_loss": record.eval_loss})
    yield from _numbers(costs[0], costs[1])
    yield from _numbers(losses[0], losses[1], digits=4)


def _ranks(first: Run, second: Run) -> Section:
    """Triplets kept, by kind of matrix."""
    kept = []
    for run in (first, second):
        pattern = run.record.rank_pattern
        places = arrange(pattern)
        sums: Counter[str] = Counter()
        for path, rank in pattern.items():
            sums[places[path].kind] += rank
        kept.append({**sums, "all": sums.total()} if pattern else {})
    lines = tuple(_numbers(kept[0], kept[1]))
    return Section("Triplets kept, by kind of matrix", lines, "" if lines else "Neither has any.")


def _agreement(first: Run, second: Run) -> Section:
    """On how many examples of each evaluation set which of the two is right (classes alone)."""
    title = "Examples that each answers rightly"
    if first.task != second.task or first.folder is None or second.folder is None:
        return Section(title, (), "They were not evaluated on the same task.")
    lines = []
    for split in first.record.scores:
        name = f"eval_predictions_{result_name(first.record.task, split)}.tsv"
        try:
            labels, ours = read_predictions(first.folder / name)
            others, theirs = read_predictions(second.folder / name)
        except UserError as error:
            return Section(title, (), f"Not counted: {error}")
        if labels != others:
            return Section(title, (), "They were evaluated on different examples.")
        if first.record.scores[split].get("main") == "pearson":
            return Section(title, (), "Not counted: the answers are numbers.")
        right = Counter(
            (a == label, b == label) for label, a, b in zip(labels, ours, theirs, strict=True)
        )
        both, neither = right[True, True], right[False, False]
        lines += [
            (f"{split}, it alone", f"{right[True, False]:,}", f"{right[False, True]:,}", ""),
            (f"{split}, both; neither", f"{both:,}; {neither:,}", f"{both:,}; {neither:,}", ""),
        ]
    return Section(title, tuple(lines))


def _warnings(first: Run, second: Run) -> Iterator[Line]:
    found = [Counter(one["kind"] for one in run.record.warnings) for run in (first, second)]
    for kind in dict.fromkeys([*found[0], *found[1]]):
        first_, second_ = ("yes" if kind in one else _ABSENT for one in found)
        yield kind, first_, second_, ""

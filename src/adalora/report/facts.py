"""What a page says of a run in words and in tables of words; the numbers come from its record."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from adalora.results.columns import Column, columns_of
from adalora.results.record import RunRecord
from adalora.results.sources import Run
from adalora.results.words import duration, megabytes, number, plural

#: Names and values of a two-column table.
Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Tile:
    """A number to see first."""

    label: str
    value: str
    note: str = ""


def title(record: RunRecord) -> str:
    """The run in half a line."""
    return f"{record.method} on {record.base_model}, {record.task or 'own data'}"


def story(run: Run) -> list[str]:
    """What the run was and what came of it, a sentence each."""
    record = run.record
    hardware, counts = record.hardware, record.parameters
    processes = hardware.get("processes") or 1
    several = f" in {processes} processes" if processes > 1 else ""
    took = f" in {duration(record.seconds)}" if record.seconds is not None else ""
    sentences = [
        f"{record.base_model} was trained with {record.method} on {record.task or 'own data'} for "
        f"{plural(record.steps, 'step')} ({record.epochs:.3g} epochs) with seed {record.seed}"
        f"{took} on {hardware.get('device', 'an unknown device')}{several}, in "
        f"{hardware.get('precision', 'unknown precision')}.",
        f"Of its {counts['total']:,} parameters {counts['trained']:,} were trained "
        f"({counts['trained'] / max(counts['total'], 1):.2%}): {counts['adapter_initial']:,} "
        f"outside the head and {counts['head']:,} of the head.",
    ]
    if record.rank_pattern:
        before = record.init_rank * len(record.rank_pattern)
        after = sum(record.rank_pattern.values())
        if record.mask_events and grows(record):
            sentences.append(
                f"The allocator placed {plural(after, 'triplet')} in "
                f"{plural(record.mask_events, 'allocation')}, at most {record.init_rank} a matrix, "
                f"which makes {counts['adapter_kept']:,} adapter parameters."
            )
        elif record.mask_events:
            sentences.append(
                f"The allocator pruned {before:,} triplets to {after:,} in "
                f"{plural(record.mask_events, 'pruning')}, which leaves "
                f"{counts['adapter_kept']:,} adapter parameters."
            )
        else:
            sentences.append(f"All {plural(after, 'triplet')} stayed: nothing was pruned.")
    if record.flags.get("load_best_model_at_end"):
        sentences.append("The model that it left is the best of its evaluations, not the last one.")
    for column in _columns(run):
        sentence = f"At the end, {column.unit} on {column.split} is {_percent(run, column)}"
        if column.majority is not None:
            sentence += f"; always the most frequent answer gives {column.majority:.2f}"
        sentences.append(sentence + ".")
    return sentences


def grows(record: RunRecord) -> bool:
    """Whether not all triplets of a run were in use at its start."""
    return record.flags.get("allocation") in ("grow", "exchange")


def reached(run: Run) -> list[str]:
    """The figures of the last epoch in percent, as every table has them."""
    return [_percent(run, column, "last") for column in _columns(run)]


def _columns(run: Run) -> tuple[Column, ...]:
    if not run.record.scores:
        return ()
    return columns_of(run.task, run.record.scores, own_data=run.record.task is None)


def _percent(run: Run, column: Column, epoch: str = "saved") -> str:
    return number(column.value(run.record.scores, epoch), 2)


def tiles(run: Run) -> list[Tile]:
    """The numbers to see first; those that were not measured are left out."""
    record = run.record
    result = []
    for column in _columns(run):
        several = f", {column.split}" if len(record.scores) > 1 else ""
        known = column.majority is not None
        note = f"percent; most frequent answer {column.majority:.2f}" if known else "percent"
        result.append(Tile(column.unit + several, _percent(run, column), note))
    counts = record.parameters
    share = f"{counts['trained'] / max(counts['total'], 1):.2%} of {counts['total']:,}"
    result.append(Tile("trained parameters", f"{counts['trained']:,}", share))
    if record.rank_pattern:
        before = record.init_rank * len(record.rank_pattern)
        result.append(
            Tile("triplets kept", f"{sum(record.rank_pattern.values()):,}", f"of {before:,}")
        )
    if record.seconds is not None:
        result.append(Tile("training time", duration(record.seconds), f"{record.steps:,} steps"))
    if record.tokens_per_second is not None:
        result.append(
            Tile("throughput", f"{record.tokens_per_second:,.0f}", "tokens per second, no padding")
        )
    if record.peak_memory_bytes is not None:
        result.append(Tile("peak memory", megabytes(record.peak_memory_bytes)))
    return result


def scores(record: RunRecord) -> list[tuple[str, str, str, str, str, str]]:
    """A row for each metric: set, metric, last, best, epoch of the best, most frequent answer."""
    rows = []
    for split, score in record.scores.items():
        last, best = score.get("last") or {}, score.get("best") or {}
        for name in score["saved"]:
            main = name == score["main"]
            epoch = score.get("best_epoch") if name in best else None
            rows.append(
                (
                    f"{split} ({score['samples']:,})",
                    name.replace("_", " "),
                    number(last.get(name)),
                    number(best.get(name)),
                    "–" if epoch is None else f"{epoch:.3g}",
                    number(score["majority"]) if main else "–",
                )
            )
    for label, loss in (("training", record.train_loss), ("evaluation", record.eval_loss)):
        if loss is not None:
            rows.append((label, "loss", number(loss), "–", "–", "–"))
    return rows


def flags(record: RunRecord) -> Rows:
    """The flags whose value is not the default."""
    return [(f"--{name}", _plain(value)) for name, value in sorted(record.flags.items())]


def environment(record: RunRecord) -> Rows:
    """Hardware, versions and the revision of the code."""
    known = [*record.hardware.items(), *record.versions.items()]
    rows = [(name, _plain(value)) for name, value in known if value not in (None, "")]
    return [*rows, ("revision", record.revision or "unknown"), ("created", str(record.created))]


def command(record: RunRecord) -> str:
    """What to type to run it again, in the project's root, a flag a line."""
    processes = record.hardware.get("processes") or 1
    program = "examples/text-classification/run_glue.py"
    start = "python" if processes == 1 else f"torchrun --nproc_per_node={processes}"
    lines = [f"{start} {program}"]
    for word in record.command:
        quoted = shlex.quote(word)
        if word.startswith("--"):
            lines.append(f"  {quoted}")
        else:
            lines[-1] += f" {quoted}"
    return " \\\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)

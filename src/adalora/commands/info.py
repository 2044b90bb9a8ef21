"""``adalora info PATH``: what a run, an artefact or a training checkpoint is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adalora.commands.flags import CommandParser

__all__ = ["main"]

EXAMPLES = """  adalora info output/rte
  adalora info output/rte/model/checkpoint-500
  adalora info output/rte --json"""
# What comes first, in this order.
_FIRST = ("kind", "path", "state", "base_model", "revision", "base_fingerprint", "model_type")


def main(flags: Sequence[str]) -> int:
    """Print the facts; 1 if an artefact's files are not as they were saved."""
    parser = CommandParser("info", "Say what a folder is.", EXAMPLES)
    parser.add_argument("path", help="a run's folder, an artefact, or a checkpoint-N")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(flags)

    from adalora.checkpoints.facts import facts_of

    facts = facts_of(arguments.path)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _show(facts)
    return 0 if facts.get("state", "complete") in ("complete", "unfinished") else 1


def _show(facts: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adalora.report import rank_table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _rows(facts):
        # Text, because a label may look like rich's markup.
        table.add_row(Text(name), Text(value))
    console = Console()
    console.print(table)
    ranks = facts.get("rank_pattern")
    if ranks:
        console.print()
        console.print(rank_table(ranks, facts["lora"]["init_rank"]))


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    rest = [name for name in facts if name not in (*_FIRST, "rank_pattern", "format_version")]
    for name in (*_FIRST, *rest):
        value = facts.get(name)
        if value in (None, False, [], (), {}, ""):
            continue
        yield from _row(name, value)


def _row(name: str, value: Any) -> Iterator[tuple[str, str]]:
    title = name.replace("_", " ")
    if name == "triplets":
        yield title, f"{value['kept']} of {value['initial']}"
    elif name in ("labels", "trained", "text_columns", "checkpoints"):
        yield title, ", ".join(json.dumps(str(one), ensure_ascii=False)[1:-1] for one in value)
    elif name == "lineage":
        for origin in value:
            yield "started from", f"{origin['path']} (sha256 {origin['sha256'][:12]})"
    elif name == "lora":
        yield (
            title,
            (
                f"{value['lora_type']}, initial rank {value['init_rank']}, alpha "
                f"{value['lora_alpha']:g}, {len(value['targets'])} matrices"
            ),
        )
    elif name == "files":
        yield title, ", ".join(f"{file} {size:,}" for file, size in value.items())
    elif name == "metrics" and any(isinstance(one, Mapping) for one in value.values()):
        for split, scores in value.items():
            yield f"metrics, {split}", _pairs(scores)
    elif isinstance(value, Mapping):
        yield title, _pairs(value)
    else:
        yield title, f"{value:,}" if name in ("bytes", "parameters") else str(value)


def _pairs(values: Any) -> str:
    if not isinstance(values, Mapping):
        return str(values)
    shown = (
        (name.removeprefix("eval_"), f"{value:.4g}" if isinstance(value, float) else value)
        for name, value in values.items()
        if value is not None and not name.endswith(("runtime", "per_second"))
    )
    return ", ".join(f"{name} {value}" for name, value in shown)

"""``adalora info PATH``: what a run, an artefact or a training checkpoint is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adalora.commands.flags import CommandParser, add_format_flag
from adalora.errors import UserError

if TYPE_CHECKING:
    from adalora.artefact.description import Description

EXAMPLES = """  adalora info output/rte
  adalora info output/rte/model/checkpoint-500
  adalora info output/rte --format json"""
# What comes first, in this order.
_FIRST = ("kind", "path", "state", "base_model", "revision", "base_fingerprint", "model_type")


def main(flags: Sequence[str]) -> int:
    """Print the facts; 1 if an artefact's files are not as they were saved."""
    parser = CommandParser("info", "Say what a folder is.", EXAMPLES)
    parser.add_argument("path", help="a run's folder, an artefact, or a checkpoint-N")
    add_format_flag(parser, "json")
    arguments = parser.parse_args(flags)

    facts = facts_of(arguments.path)
    if arguments.format == "json":
        print(json.dumps(facts, indent=2))
    else:
        _show(facts)
    return 0 if facts.get("state", "complete") in ("complete", "unfinished") else 1


def _show(facts: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adalora.terminal.summaries import rank_table

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


_TRAINABLE = "trainable.safetensors"
_ALLOCATOR = "allocator.safetensors"
_STATE = "trainer_state.json"


def facts_of(path: str | Path) -> dict[str, Any]:
    """What ``path`` is; values are plain, so that they can be written as JSON.

    Returns:
        ``kind`` (``artefact``, ``run`` or ``checkpoint``), ``path``, and what that kind has.

    Raises:
        UserError: if it is none of them, or what it holds cannot be read.
    """
    from adalora.artefact.description import MANIFEST, read_description
    from adalora.artefact.stored import find_artefact

    folder = Path(path).expanduser()
    if (folder / _STATE).is_file() and (folder / _TRAINABLE).is_file():
        return _checkpoint(folder)
    checkpoints = _checkpoints(folder if (folder / MANIFEST).is_file() else folder / "model")
    if checkpoints and not any((f / MANIFEST).is_file() for f in (folder, folder / "model")):
        return {"kind": "run", "path": str(folder), "state": "unfinished"} | {
            "checkpoints": checkpoints
        }
    if not folder.exists():
        raise UserError(f"{folder} does not exist.")
    try:
        source = find_artefact(folder)
    except UserError as error:
        raise UserError(
            f"{folder} is neither an artefact, nor a run's folder, nor a training checkpoint."
        ) from error
    description = read_description(source)
    kind = "artefact" if source == folder else "run"
    return {"kind": kind, "path": str(folder), **_artefact(source, description)} | {
        "checkpoints": checkpoints
    }


def _checkpoints(folder: Path) -> list[str]:
    found = [f for f in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", f.name)]
    return [f.name for f in sorted(found, key=lambda f: int(f.name.partition("-")[2]))]


def _artefact(source: Path, description: Description) -> dict[str, Any]:
    from adalora.artefact.stored import ADAPTER_FILE, check_files, shapes

    try:
        check_files(source, description)
        state = "complete"
    except UserError as error:
        state = str(error)
    facts = asdict(description)
    del facts["checksums"], facts["rank_pattern"]
    facts["state"] = state
    facts["bytes"] = sum(description.files.values())
    if description.lora is not None:
        ranks = description.rank_pattern
        total = description.lora.init_rank * len(description.lora.targets)
        facts["triplets"] = {"kept": sum(ranks.values()) if ranks else total, "initial": total}
        facts["rank_pattern"] = ranks
    if (source / ADAPTER_FILE).is_file() and state == "complete":
        facts["parameters"] = sum(map(prod, shapes(source / ADAPTER_FILE).values()))
    return facts


def _checkpoint(folder: Path) -> dict[str, Any]:
    from adalora.artefact.description import MANIFEST, read_description
    from adalora.artefact.stored import shapes
    from adalora.storage.files import read_json

    state = read_json(folder / _STATE)
    stored = shapes(folder / _TRAINABLE)
    allocated = (folder / _ALLOCATOR).is_file()
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(folder),
        "step": state.get("global_step"),
        "max_steps": state.get("max_steps"),
        "epoch": state.get("epoch"),
        "method": _method(stored, allocated),
        "files": {f.name: f.stat().st_size for f in sorted(folder.iterdir()) if f.is_file()},
        "metrics": _last_evaluation(state.get("log_history") or []),
        "best_metric": state.get("best_metric"),
        "best_checkpoint": state.get("best_model_checkpoint"),
    }
    facts["bytes"] = sum(facts["files"].values())
    facts["parameters"] = sum(
        prod(shape) for name, shape in stored.items() if not name.endswith("ranknum")
    )
    values = [name for name in stored if name.endswith(".lora_E")]
    if values or allocated:
        # Plain LoRA that is pruned has no singular values.
        ranked = values or [name for name in stored if name.endswith(".lora_A")]
        facts["triplets"] = {
            "kept": _kept(folder, values),
            "initial": sum(stored[name][0] for name in ranked),
        }
    # A finished run has its description in the folder of its checkpoints.
    if (folder.parent / MANIFEST).is_file():
        description = read_description(folder.parent)
        for name in ("base_model", "revision", "model_type", "task", "labels"):
            facts[name] = getattr(description, name)
    return facts


def _method(names: Iterable[str], allocated: bool) -> str:
    ends = {name.rpartition(".")[2] for name in names}
    parts = []
    if "lora_E" in ends:
        parts.append("AdaLoRA" if allocated else "LoRA (svd)")
    elif "lora_A" in ends:
        parts.append("LoRA (frd), pruned" if allocated else "LoRA (frd)")
    if any(".adapter." in name for name in names):
        parts.append("bottleneck adapters")
    return " + ".join(parts) or "parameters of the base"


def _kept(folder: Path, values: Iterable[str]) -> int:
    """Triplets of the last masking, or those that are not zero where there was no allocator."""
    from adalora.storage.files import read_tensors

    allocator = folder / _ALLOCATOR
    if allocator.is_file():
        kept = {n: t for n, t in read_tensors(allocator).items() if n.startswith("survivors/")}
        if kept:
            return sum(int(tensor.sum()) for tensor in kept.values())
    tensors = read_tensors(folder / _TRAINABLE)
    return sum(int(tensors[name].count_nonzero()) for name in values)


def _last_evaluation(history: list[dict[str, Any]]) -> dict[str, Any]:
    every = ({k: v for k, v in one.items() if k.startswith("eval_")} for one in reversed(history))
    return next(filter(None, every), {})

"""What a folder is, as plain facts: an artefact, a run, or a training checkpoint.

Only headers and small files are read; no base is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch

from adalora.checkpoints.description import MANIFEST, Description, read_description
from adalora.checkpoints.files import read_json, read_tensors
from adalora.checkpoints.folder import check_files, find_artefact
from adalora.checkpoints.rebuild import ADAPTER_FILE, shapes
from adalora.errors import UserError

__all__ = ["facts_of"]

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
    # A finished run has its description beside its checkpoints.
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
    allocator = folder / _ALLOCATOR
    if allocator.is_file():
        kept = {n: t for n, t in read_tensors(allocator).items() if n.startswith("survivors/")}
        if kept:
            return sum(int(tensor.sum()) for tensor in kept.values())
    tensors = read_tensors(folder / _TRAINABLE)
    return sum(int(torch.count_nonzero(tensors[name])) for name in values)


def _last_evaluation(history: list[dict[str, Any]]) -> dict[str, Any]:
    for entry in reversed(history):
        found = {name: value for name, value in entry.items() if name.startswith("eval_")}
        if found:
            return found
    return {}

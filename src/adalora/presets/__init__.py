"""Presets: the flags of the paper's table 1, task by task, each value with its source.

A preset ``TASK/METHOD`` is put together from ``common.yaml``, ``tasks/TASK.yaml`` (those of its
sections that the method names) and ``methods/METHOD.yaml``, so that each figure of the paper stands
in one place. No file says again what another said: each flag has one value and one source.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from adalora.errors import UserError
from adalora.shell import program

__all__ = [
    "Preset",
    "Setting",
    "find_preset",
    "methods",
    "preset_names",
    "remaining_flags",
    "tasks",
    "untuned",
]

_HOME = Path(__file__).parent
# In the order of the paper's table 1.
_TASKS = ("mnli", "sst2", "cola", "qqp", "qnli", "rte", "mrpc", "stsb")
# A flag of the user's -> the preset's flag that would contradict it without being the same flag.
_DISPLACES = {
    "warmup_ratio": "warmup_steps",
    "warmup_steps": "warmup_ratio",
    "train_file": "task_name",
    "validation_file": "task_name",
}


@dataclass(frozen=True)
class Setting:
    """The value of one flag, and where it is from."""

    value: Any
    source: str


@dataclass(frozen=True)
class Preset:
    """One row of table 1 on one task (or the released script's settings)."""

    name: str  #: ``TASK/METHOD``
    title: str  #: the method in words
    task: str  #: its name
    #: (method, parameters) of ``adalora.tables.grids``'s table 1; None where the table has no such
    #: row
    paper_row: tuple[str, str] | None
    settings: Mapping[str, Setting]  #: flag -> value and source, in the order to show


def tasks() -> tuple[str, ...]:
    """Tasks that there are presets of."""
    return _TASKS


@cache
def methods() -> tuple[str, ...]:
    """The second halves of the names."""
    return tuple(sorted(path.stem for path in (_HOME / "methods").glob("*.yaml")))


def preset_names() -> list[str]:
    """Every name, task by task."""
    return [f"{task}/{method}" for task in _TASKS for method in methods()]


def find_preset(name: str) -> Preset:
    """The preset of that name; if there is none, the nearest are named."""
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=3)
        hint = (
            f"did you mean {' or '.join(near)}?"
            if near
            else f"'{program('adalora')} presets' lists them."
        )
        raise UserError(f"There is no preset {name!r}; {hint}")
    task, method = name.split("/")
    of_task, of_method = _read(f"tasks/{task}.yaml"), _read(f"methods/{method}.yaml")
    blocks = [
        *_read("common.yaml")["flags"],
        *(block for section in of_method["sections"] for block in of_task[section]),
        *of_method["flags"],
    ]
    settings: dict[str, Setting] = {}
    for flag, setting in _settings(blocks):
        if flag in settings:
            raise ValueError(f"{name}: {flag} is given by {settings[flag]} and {setting}")
        settings[flag] = setting
    row = of_method["paper_row"]
    return Preset(name, of_method["title"], task, tuple(row) if row else None, settings)


def remaining_flags(preset: Preset, given: Collection[str]) -> dict[str, Any]:
    """The preset's flags that the user has not ``given``, nor any that contradicts them."""
    return _remaining(preset.settings, given)


def untuned(given: Mapping[str, Any]) -> dict[str, Any]:
    """What AdaLoRA runs with where the user says nothing, by flag; empty without AdaLoRA.

    One rank alone decides the other: a run ends with half the rank that it starts with. The
    original's spelling, which names the form (``--apply_lora --lora_type svd``), keeps the
    published start; no other flag changes where the factors start.
    """
    if not given.get("apply_adalora") or given.get("lora_type", "svd") != "svd":
        return {}
    found = _remaining(dict(_settings(_read("untuned.yaml")["flags"])), given)
    if given.get("apply_lora") and "lora_type" in given:
        found.pop("lora_init", None)
    start, end = given.get("lora_r"), given.get("target_rank")
    if "target_total_rank" in given:
        found.pop("target_rank", None)
    elif start is not None and end is None:
        found["target_rank"] = max(start // 2, 1)
    if start is None and end is not None:
        found["lora_r"] = max(2 * end, 1)
    return found


def _remaining(settings: Mapping[str, Setting], given: Collection[str]) -> dict[str, Any]:
    displaced = {*given, *(_DISPLACES[flag] for flag in given if flag in _DISPLACES)}
    return {flag: setting.value for flag, setting in settings.items() if flag not in displaced}


def _settings(blocks: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Setting]]:
    for block in blocks:
        for flag, value in block.items():
            if flag != "source":
                yield flag, Setting(value, str(block["source"]))


@cache
def _read(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((_HOME / name).read_text(encoding="utf-8")))

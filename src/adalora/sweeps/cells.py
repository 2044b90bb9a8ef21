"""The runs of a sweep: tasks × methods × budgets × grid × seeds, each with an id and its flags."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Flags = Mapping[str, Any]

#: What distinguishes cells, in addition to the flags of the grid.
AXES = ("task", "method", "budget", "seed")

#: Flags that every run of a sweep has unless the file says otherwise.
DEFAULTS: Flags = {
    "do_train": True,
    "do_eval": True,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
}

_LONGEST_ID = 120


@dataclass(frozen=True)
class Spec:
    """A sweep's file, checked; each part maps a name to the flags that belong to it."""

    name: str  #: of the sweep
    base: Flags  #: flags of every run
    tasks: Mapping[str, Flags]  #: task -> flags
    methods: Mapping[str, Flags]  #: method -> flags
    #: budget -> method -> flags; a method that no budget names is run once, without
    budgets: Mapping[str, Mapping[str, Flags]] = field(default_factory=dict)
    seeds: Sequence[int] = (42,)  #: one run each
    #: flag -> the values it takes in turn
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    #: pairs of what selects cells, and the flags that these have instead
    overrides: Sequence[tuple[Flags, Flags]] = ()
    exclude: Sequence[Flags] = ()  #: what selects cells that are left out


@dataclass(frozen=True)
class Cell:
    """One run that is to be made."""

    id: str  #: names its folder and its line in the results
    #: task, method, budget (None without one), seed, and the flags of the grid
    axes: Mapping[str, Any]
    flags: Flags  #: all flags of run_glue.py but where to write

    @property
    def group(self) -> str:
        """What the seeds of one setting have in common: every axis, those of the grid too."""
        return json.dumps({k: v for k, v in self.axes.items() if k != "seed"}, sort_keys=True)


def cells_of(spec: Spec) -> list[Cell]:
    """Every cell of ``spec`` that is not excluded; seeds outermost, so a table is soon whole.

    Later flags win: base, task, method, budget, overrides, grid, seed. A flag that is null
    is not given.
    """
    cells = []
    names = list(spec.grid)
    for seed, task, method in itertools.product(spec.seeds, spec.tasks, spec.methods):
        named = [budget for budget, methods in spec.budgets.items() if method in methods]
        for budget in named or (None,):
            for values in itertools.product(*spec.grid.values()):
                grid = dict(zip(names, values, strict=True))
                axes = {"task": task, "method": method, "budget": budget, "seed": seed, **grid}
                if not any(selects(one, axes) for one in spec.exclude):
                    cells.append(Cell(_id(axes), axes, _flags(spec, axes, grid)))
    return cells


def selects(pattern: Flags, axes: Mapping[str, Any]) -> bool:
    """Whether each axis that ``pattern`` names has the value there, or one of the values there."""
    return all(
        axes[name] in value if isinstance(value, list) else axes[name] == value
        for name, value in pattern.items()
    )


def words(flags: Flags) -> list[str]:
    """The command line that gives ``flags``."""
    command: list[str] = []
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        command += [f"--{name}", *(word(one) for one in values)]
    return command


def word(value: Any) -> str:
    """A flag's value as one word of a command line."""
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _flags(spec: Spec, axes: Mapping[str, Any], grid: Flags) -> Flags:
    own_data = {"train_file", "validation_file"} & set(spec.tasks[axes["task"]])
    parts: list[Flags] = [
        DEFAULTS,
        spec.base,
        {} if own_data else {"task_name": axes["task"]},
        spec.tasks[axes["task"]],
        spec.methods[axes["method"]],
        {} if axes["budget"] is None else spec.budgets[axes["budget"]][axes["method"]],
        *(flags for pattern, flags in spec.overrides if selects(pattern, axes)),
        grid,
        {"seed": axes["seed"]},
    ]
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    return {name: value for name, value in merged.items() if value is not None}


def _id(axes: Mapping[str, Any]) -> str:
    """A name for a folder: readable, and unique although it is shortened."""
    own = [str(axes[name]) for name in ("task", "method", "budget") if axes[name] is not None]
    grid = [f"{name}={word(value)}" for name, value in axes.items() if name not in AXES]
    exact = "_".join([*own, *grid, f"seed{axes['seed']}"])
    shown = re.sub(r"[^A-Za-z0-9._=+-]", "-", exact)[:_LONGEST_ID]
    if shown == exact and not shown.startswith("."):
        return shown
    digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
    return f"{shown.lstrip('.')}-{digest}"

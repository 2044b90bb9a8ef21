"""Runs into rows: what is averaged with what, and what each row is called and cost.

A row is a base model, a method and the flags of it; its runs of one task differ in the seed alone.
Where they differ in another flag as well, the row is split by that flag: two learning rates are
never averaged as if they were two seeds. Between tasks a row's flags may differ, as in the paper,
and ``Row.differences`` has those that do. A run that failed belongs to the row of its cell's other
seeds, else to that of its cell's other tasks, else to a row of failures alone.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adalora.results.columns import Column, task_order, task_title
from adalora.results.sources import Failure, Run

#: Flags that decide where a run reads and writes, and nothing of what it learns.
_HOUSEKEEPING = frozenset(
    """cache_dir data_dir dataloader_num_workers dataloader_pin_memory disable_tqdm do_eval
    do_predict do_train eval_on_start force_resume local_rank log_level logging_dir logging_steps
    logging_strategy logging_first_step max_test_samples no_cuda output_dir overwrite_cache
    overwrite_output_dir per_device_eval_batch_size per_gpu_eval_batch_size report_to
    resume_from_checkpoint root_output_dir run_name save_only_model save_steps save_strategy
    save_total_limit seed task_name tb_writter_loginterval test_file use_auth_token
    use_cpu preset""".split()
)
#: Flags that the label of a row has already.
_IN_LABEL = frozenset(
    """adapter_size adapter_type apply_adalora apply_adapter apply_bitfit apply_lora lora_init
    lora_plus_ratio lora_r lora_scaling lora_type model_name_or_path target_rank
    target_total_rank""".split()
)

#: Flags that make another method of it: in the label also where all runs share them.
_ALWAYS_SHOWN = frozenset("adapter_path lora_path masking_prob reg_loss_wgt".split())
_DEFAULT = "default"
#: What a sweep varies within a row, and the row's own name.
_NO_METHOD = ("task", "method", "seed")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of ``n`` seeds; the deviation of one seed is None."""

    mean: float
    deviation: float | None
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value; ddof = 1."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return Spread(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Row:
    """One row: its runs by task, each task's in the order of their seeds, and those that failed."""

    base_model: str
    label: str
    runs: Mapping[str, tuple[Run, ...]]
    failures: tuple[Failure, ...] = ()

    def figures(self, column: Column, epoch: str) -> dict[int, float]:
        """Seed -> figure in percent, of the seeds that have a finite one."""
        values = {
            run.record.seed: column.value(run.record.scores, epoch)
            for run in self.runs.get(column.task, ())
        }
        return {
            seed: value
            for seed, value in values.items()
            if value is not None and math.isfinite(value)
        }

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """Of every task."""
        return tuple(run for runs in self.runs.values() for run in runs)

    def flagged(self, task: str) -> int:
        """How many runs on ``task`` carry a warning."""
        return sum(bool(run.record.warnings) for run in self.runs.get(task, ()))

    def failed(self, task: str) -> tuple[Failure, ...]:
        """The runs on ``task`` that failed."""
        return tuple(one for one in self.failures if one.task == task)

    def parameters(self, name: str) -> float:
        """Mean over the runs of a count of the record; 0 without a run.

        ``adapter_kept`` is what the paper counts, after pruning; ``adapter_initial`` before it.
        """
        return statistics.fmean([run.record.parameters[name] for run in self.all_runs] or [0])

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """Flag -> {task: value}, for the flags that are not the same in all tasks of the row."""
        by_task = {task: _flags(runs[0]) for task, runs in self.runs.items()}
        return {
            name: {task: flags.get(name, _DEFAULT) for task, flags in by_task.items()}
            for name in _varied(by_task.values())
        }


def _flags(run: Run) -> dict[str, Any]:
    skip = _HOUSEKEEPING | _IN_LABEL
    return {name: value for name, value in run.record.flags.items() if name not in skip}


def _varied(several: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the flags that are not the same everywhere."""
    flags = list(several)
    names = sorted({name for one in flags for name in one})
    return [name for name in names if len({repr(one.get(name, _DEFAULT)) for one in flags}) > 1]


def row_label(run: Run) -> str:
    """The method and its size, such as ``AdaLoRA 4→2`` or ``LoRA r=8``."""
    record, flags = run.record, run.record.flags
    if flags.get("apply_adalora") or flags.get("prune_lora"):
        total = flags.get("target_total_rank")
        # 16 is the default of --target_rank, as in the original.
        target = f"{flags.get('target_rank', 16)}" if total is None else f"{total} triplets"
        return f"{record.method} {record.init_rank or flags.get('lora_r')}→{target}"
    if flags.get("apply_lora"):
        return f"{record.method} r={flags.get('lora_r')}"
    if flags.get("apply_adapter"):
        return f"{record.method} d={flags.get('adapter_size', 64)}"
    return record.method[:1].upper() + record.method[1:]


def rows_of(runs: Sequence[Run], failures: Sequence[Failure] = ()) -> tuple[list[Row], list[str]]:
    """The rows in the order in which their first runs come, and notes on runs left out."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[_base_name(run.record.base_model), row_label(run)].append(run)
    rows, notes = [], []
    for (base, label), members in groups.items():
        for suffix, part in _split(members).items():
            by_task: dict[str, tuple[Run, ...]] = {}
            for task in sorted({run.task for run in part}, key=task_order):
                of_task = [run for run in part if run.task == task]
                newest = {
                    run.record.seed: run
                    for run in sorted(of_task, key=lambda run: run.record.created)
                }
                if len(newest) < len(of_task):
                    notes.append(
                        f"{label}{suffix} on {task_title(task)}: {len(of_task) - len(newest)} of "
                        f"{len(of_task)} runs repeat a seed; the newest of each counts."
                    )
                by_task[task] = tuple(newest[seed] for seed in sorted(newest))
            rows.append(Row(base, label + suffix, by_task))
    return _with_failures(rows, failures), notes


def _with_failures(rows: Sequence[Row], failures: Sequence[Failure]) -> list[Row]:
    cells = [[run.cell for run in row.all_runs if run.cell] for row in rows]
    found: dict[int, list[Failure]] = defaultdict(list)
    alone: dict[str, list[Failure]] = defaultdict(list)
    varied = [name for name in _varied([one.cell for one in failures]) if name not in _NO_METHOD]
    for failure in failures:
        for left_out in ({"seed"}, {"seed", "task"}):
            own = _without(failure.cell, left_out)
            place = next(
                (n for n, of in enumerate(cells) if any(_without(c, left_out) == own for c in of)),
                None,
            )
            if place is not None:
                found[place].append(failure)
                break
        else:
            parts = [f"{name}={failure.cell[name]}" for name in varied if failure.cell.get(name)]
            name = str(failure.cell.get("method") or "unnamed method")
            alone[", ".join([name, *parts])].append(failure)
    return [
        *(replace(row, failures=tuple(found[index])) for index, row in enumerate(rows)),
        *(Row("", label, {}, tuple(of)) for label, of in alone.items()),
    ]


def _without(cell: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in cell.items() if name not in names}


def _base_name(base_model: str) -> str:
    """A folder by its last part: the same model lies elsewhere on another machine."""
    path = Path(base_model)
    return path.name if path.is_absolute() or base_model.startswith((".", "~")) else base_model


def _split(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Part runs by the flags that differ between runs of one task: suffix of the label -> runs."""
    tasks = {run.task for run in runs}
    varied = {
        name for task in tasks for name in _varied(_flags(run) for run in runs if run.task == task)
    }
    parts: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        flags = _flags(run)
        names = sorted(flags.keys() & (varied | _ALWAYS_SHOWN))
        parts["".join(f", {name}={flags[name]}" for name in names)].append(run)
    return parts

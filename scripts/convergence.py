#!/usr/bin/env python
"""The steps of docs/results/protocol.md that no other program does.

    python scripts/convergence.py rates SWEEP
    python scripts/convergence.py post_hoc SWEEP --target_rank 2
    python scripts/convergence.py ledger SWEEP RESULTS.jsonl [--replace OLD=NEW ...]

``rates`` applies the protocol's rule to the search. ``post_hoc`` truncates every run of the method
``lora-4`` and evaluates what is left, as runs of the method ``post-hoc`` in the same sweep.
``ledger`` writes what a sweep noted to a file of the repository, with paths replaced.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adalora.artefact.stored import ADAPTER_FILE
from adalora.export.truncate import Truncation, truncate_run
from adalora.results.record import RunRecord
from adalora.results.sources import Result, Run, read_sources
from adalora.storage.files import read_tensors
from adalora.sweeps.cells import words
from adalora.sweeps.ledger import Ledger

RUN_GLUE = Path(__file__).parents[1] / "examples" / "text-classification" / "run_glue.py"
#: Tasks and successive rates that every method is searched with.
TASKS, RATES = {"sst2", "qnli"}, 4
#: A rate is near enough to the best, in accuracy.
WITHIN = 0.01
#: Warnings of a run whose rate is not eligible.
UNFIT = {"one_class", "loss_not_finite"}


def choose(runs: Sequence[Run]) -> dict[str, tuple[float | None, dict[float, float], list[float]]]:
    """Method -> the rate that the rule chooses, mean accuracy by rate, and rates not eligible.

    None is chosen while a rate is missing on a task.
    """
    scores: dict[str, dict[float, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    unfit: dict[str, set[float]] = defaultdict(set)
    for run in runs:
        method, rate = run.cell["method"], float(run.cell["learning_rate"])
        found = run.record.scores["validation"]
        scores[method][rate][run.cell["task"]].append((found["last"] or {})[found["main"]])
        if UNFIT & {warning["kind"] for warning in run.record.warnings}:
            unfit[method].add(rate)
    chosen = {}
    for method, by_rate in scores.items():
        complete = len(by_rate) >= RATES and all(set(found) == TASKS for found in by_rate.values())
        means = {
            rate: statistics.fmean(statistics.fmean(of_task) for of_task in by_task.values())
            for rate, by_task in sorted(by_rate.items())
        }
        eligible = {rate: mean for rate, mean in means.items() if rate not in unfit[method]}
        best = max(eligible.values(), default=0.0)
        near = [rate for rate, mean in eligible.items() if mean >= best - WITHIN]
        rate = min(near) if complete and near else None
        chosen[method] = rate, means, sorted(unfit[method])
    return chosen


def show_rates(sweep: str) -> None:
    """Print a line for each method; an end of its rates that was chosen is marked."""
    for method, (rate, means, unfit) in choose(read_sources([sweep]).runs).items():
        tried = ", ".join(
            f"{one:g}: {100 * mean:.2f}{' (not eligible)' if one in unfit else ''}"
            for one, mean in means.items()
        )
        best = max(means, key=lambda one: (one not in unfit, means[one]))
        at_end = rate is not None and rate == best and rate in (min(means), max(means))
        verdict = "not complete" if rate is None else f"{rate:g}{', at an end' if at_end else ''}"
        print(f"{method}: {verdict}   [{tried}]")


def post_hoc(sweep: Path, *, target_rank: int, flags: Mapping[str, str]) -> int:
    """Truncate and evaluate every finished run of ``lora-4`` that has no such line yet.

    Args:
        sweep: its folder; models must have been kept (``--keep all``).
        target_rank: as of ``adalora truncate``.
        flags: of run_glue.py for the evaluation, instead of those of the run.

    Returns:
        How many were made.
    """
    made = 0
    with Ledger.opened(sweep) as ledger:
        for source in [one for one in ledger.results.values() if one.cell["method"] == "lora-4"]:
            cell = {**source.cell, "method": "post-hoc"}
            name = source.id.replace("lora-4", "post-hoc")
            if source.record is None or name in ledger.results:
                continue
            folder, small = sweep / "runs" / name, sweep / "truncated" / name
            done = truncate_run(
                sweep / "runs" / source.id, target_rank=target_rank, output=small, overwrite=True
            )
            shutil.rmtree(folder, ignore_errors=True)
            trained = {k: v for k, v in source.record.flags.items() if k not in ("do_train",)}
            asked = {**trained, **flags, "lora_path": small, "root_output_dir": folder}
            subprocess.run([sys.executable, str(RUN_GLUE), *words(asked)], check=True)
            stored = read_tensors(small / "model" / ADAPTER_FILE).values()
            record = _as_truncated(
                RunRecord.read(folder), source.record, done, sum(t.numel() for t in stored)
            )
            record.write(folder)
            ledger.add(Result(name, cell, record=record))
            made += 1
    return made


def _as_truncated(
    evaluated: RunRecord, trained: RunRecord, truncation: Truncation, kept: int
) -> RunRecord:
    """What was evaluated in layers of the initial rank, with the sizes of what was truncated."""
    flags = {k: v for k, v in evaluated.flags.items() if k not in ("lora_path", "root_output_dir")}
    return replace(
        evaluated,
        method="LoRA, truncated",
        flags=flags | {"do_train": True},
        parameters={**trained.parameters, "adapter_kept": kept},
        rank_pattern=truncation.rank_pattern,
        init_rank=trained.flags["lora_r"],
        steps=trained.steps,
        epochs=trained.epochs,
        seconds=trained.seconds,
    )


def write_ledger(sweep: Path, target: Path, replaced: Sequence[str]) -> None:
    """Copy the sweep's lines with every OLD replaced by its NEW."""
    text = (sweep / "results.jsonl").read_text(encoding="utf-8")
    for pair in replaced:
        old, _, new = pair.partition("=")
        text = text.replace(old, new)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    # Whether it can still be read.
    print(f"{target}: {len(read_sources([str(target)]).runs)} finished runs")


def main() -> int:
    """Do the step that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    rates = steps.add_parser("rates")
    truncating = steps.add_parser("post_hoc")
    copying = steps.add_parser("ledger")
    for step in (rates, truncating, copying):
        step.add_argument("sweep", type=Path)
    truncating.add_argument("--target_rank", type=int, default=2)
    truncating.add_argument("--data_dir", help="default: that of the run")
    copying.add_argument("target", type=Path)
    copying.add_argument("--replace", action="append", default=[], metavar="OLD=NEW")
    asked = parser.parse_args()
    if asked.step == "rates":
        show_rates(str(asked.sweep))
    elif asked.step == "ledger":
        write_ledger(asked.sweep, asked.target, asked.replace)
    else:
        flags = {} if asked.data_dir is None else {"data_dir": asked.data_dir}
        print(f"{post_hoc(asked.sweep, target_rank=asked.target_rank, flags=flags)} runs truncated")
    return 0


if __name__ == "__main__":
    sys.exit(main())

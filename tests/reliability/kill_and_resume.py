#!/usr/bin/env python
"""Kill real training processes at random moments, resume them, and compare with an unbroken run.

For each variant one run is left alone. A second one with the same flags is killed (SIGKILL, every
process of it at once) again and again, each time at a random step or while it writes a checkpoint,
and started again with the same command. At the end everything that the two hold must be the same,
bit for bit: parameters, optimizer, allocator, random generators, ranks, and the log of losses.

    python tests/reliability/kill_and_resume.py      # 24 kills, five to ten minutes
    python tests/reliability/kill_and_resume.py --variants bf16 --kills 3 --seed 1

Prints a table; the exit status is 1 if anything differs or a kill missed its run.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killable_run import KillableRun, differences
from rich.console import Console
from rich.table import Table

STEPS, INIT_WARMUP, FINAL_WARMUP, MASK_INTERVAL, SAVE_STEPS = 24, 5, 8, 2, 3
FLAGS = (
    "--model_name_or_path nano --task_name mini-rte --do_train --do_eval "
    "--apply_lora --apply_adalora --lora_type svd --lora_r 2 --target_rank 1 "
    "--lora_module query,key,value,intermediate,layer.output,attention.output "
    f"--reg_orth_coef 0.1 --init_warmup {INIT_WARMUP} --final_warmup {FINAL_WARMUP} "
    f"--mask_interval {MASK_INTERVAL} --max_steps {STEPS} --learning_rate 2e-3 --warmup_steps 4 "
    # An epoch is ten steps, so that the runs cross its end twice.
    "--max_train_samples 80 --max_val_samples 32 --max_seq_length 48 "
    f"--save_steps {SAVE_STEPS} --eval_strategy steps --eval_steps 4 --logging_steps 1 "
    "--report_to none --disable_tqdm True --seed 6"
).split()
#: Variant -> (processes, flags); eight examples in a step, whatever the variant.
VARIANTS: dict[str, tuple[int, str]] = {
    "float32": (1, "--per_device_train_batch_size 8"),
    "bf16": (1, "--per_device_train_batch_size 8 --bf16"),
    "accumulation": (1, "--per_device_train_batch_size 2 --gradient_accumulation_steps 4"),
    "two-processes": (2, "--per_device_train_batch_size 4"),
}


@dataclass(frozen=True)
class Kill:
    """One kill: what it waited for, and where it found the run."""

    planned: str
    step: int
    phase: str
    resumes_from: int
    left_half_written: bool


def phase_of(step: int) -> str:
    """What the run was about when it had made ``step`` steps."""
    if step == 0:
        return "before the first step"
    if step >= STEPS:
        return "after the last step"
    if step <= INIT_WARMUP:
        return "initial warm-up"
    if step > STEPS - FINAL_WARMUP:
        return "final phase"
    return "after a mask event" if (step - 1) % MASK_INTERVAL == 0 else "between mask events"


def kill_once(run: KillableRun, dice: random.Random, remaining: int) -> Kill | None:
    """Start the run, kill it somewhere further on, and say where; None if it had ended before."""
    position = run.checkpoint()
    ahead = dice.randint(1, max(1, 2 * (STEPS - position) // (remaining + 1)))
    kind = dice.choices(("start", "write", "step"), (1, 5, 5))[0]
    if kind == "start":
        planned = "while it starts"
        landed = run.kill_when(lambda: True, dice.uniform(0.5, 6))
    elif kind == "write":
        planned = "while it writes a checkpoint"
        # Every third step writes one.
        step = min((position + max(ahead, SAVE_STEPS)) // SAVE_STEPS * SAVE_STEPS, STEPS)
        partial = run.model / f".checkpoint-{step}.partial"
        # What an earlier kill left there goes before the first step.
        written = lambda: run.steps_logged() > 0 and partial.exists()  # noqa: E731
        landed = run.kill_when(written, dice.uniform(0, 0.03))
    else:
        planned = f"after step {position + ahead}"
        landed = run.kill_when(lambda: run.steps_logged() >= ahead, dice.uniform(0, 0.1))
    if not landed:
        return None
    step = position + run.steps_logged()
    return Kill(planned, step, phase_of(step), run.checkpoint(), run.half_written())


def try_variant(variant: str, folder: Path, kills: int, dice: random.Random) -> Any:
    """Kills that landed, and the names of what differs at the end."""
    folder.mkdir(parents=True)
    processes, own = VARIANTS[variant]
    whole, killed = (
        KillableRun(folder / name, [*FLAGS, *own.split()], processes=processes)
        for name in ("whole", "killed")
    )
    whole.finish()
    landed = []
    for number in range(kills):
        kill = kill_once(killed, dice, kills - number)
        if kill is None:
            break
        landed.append(kill)
    killed.finish()
    return landed, differences(whole, killed)


def main() -> int:
    """Try every variant that was asked for and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--kills", type=int, default=6, help="kills of each variant")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which to kill")
    parser.add_argument("--folder", type=Path, help="for the runs; default: a temporary one")
    flags = parser.parse_args()
    variants = flags.variants.split(",")
    if unknown := set(variants) - VARIANTS.keys():
        parser.error(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    dice = random.Random(flags.seed)
    table = Table("variant", "kill", "planned", "step", "phase", "resumed from", "half-written")
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        for variant in variants:
            folder = (flags.folder or Path(temporary)) / variant
            landed, different = try_variant(variant, folder, flags.kills, dice)
            for number, kill in zip(itertools.count(1), landed, strict=False):
                half = "yes" if kill.left_half_written else ""
                where = (str(kill.step), kill.phase, str(kill.resumes_from), half)
                table.add_row(variant, str(number), kill.planned, *where)
            verdict = "bit-equal" if not different else f"DIFFERS: {', '.join(different)}"
            if len(landed) < flags.kills:
                verdict += f"; only {len(landed)} of {flags.kills} kills landed"
            good = good and not different and len(landed) == flags.kills
            table.add_row(variant, "", f"[bold]{verdict}[/bold]", end_section=True)
    Console(width=110).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

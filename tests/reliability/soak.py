#!/usr/bin/env python
"""A long run under everything that happens to long runs, compared with one that was left alone.

One run of some thousand steps on the built-in model is trained in one go. A second one with the
same flags is killed or stopped by a signal at random moments and started again with the same
command, over and over; between two starts the first run's artefact is evaluated or exported, as
people do while a machine is at work. At the end both must hold the same, bit for bit, every score
must be the first one, and no process may have grown.

    python tests/reliability/soak.py --steps 2000 --interruptions 12      # half an hour or so
    python tests/reliability/soak.py --steps 40 --interruptions 2         # what the tests do

Prints a table; the exit status is 1 if anything differs, grows or fails.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
from killable_run import KillableRun, differences, environment
from rich.console import Console
from rich.table import Table

MEGABYTE = 1024 * 1024
#: What a process may gain between the second and the last fifth of its training, and of how many
#: steps on that is judged: at its beginning each allocates what it then keeps.
MOST_GROWTH, ENOUGH_STEPS = 24 * MEGABYTE, 100

#: Exit status -> what ended a run.
ENDINGS = {0: "its end", 143: "SIGTERM", 130: "SIGINT", -signal.SIGKILL: "SIGKILL"}


def flags_for(steps: int) -> list[str]:
    """Of a run of ``steps`` steps, which saves a dozen times and evaluates as often."""
    every = max(steps // 12, 3)
    return (
        "--model_name_or_path nano --task_name mini-rte --do_train --do_eval "
        "--apply_lora --apply_adalora --lora_type svd --lora_r 2 --target_rank 1 "
        "--lora_module query,key,value,intermediate,layer.output,attention.output "
        "--reg_orth_coef 0.1 --init_warmup 0.2 --final_warmup 0.3 --mask_interval 5 "
        f"--max_steps {steps} --learning_rate 1e-3 --per_device_train_batch_size 8 "
        "--max_seq_length 48 --max_val_samples 64 --logging_steps 1 --disable_tqdm True --seed 6 "
        f"--save_steps {every} --eval_strategy steps --eval_steps {every + 1} --save_total_limit 3"
    ).split()


@dataclass
class Memory:
    """Resident memory of a run's process while it trains, sampled from another thread."""

    run: KillableRun
    process: subprocess.Popen[bytes]
    samples: list[int] = field(default_factory=list)
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.1):
            try:
                if self.run.steps_logged():
                    self.samples.append(psutil.Process(self.process.pid).memory_info().rss)
            except psutil.Error:
                return

    def fifths(self) -> tuple[float, float]:
        """Median bytes in the second fifth of the samples and in the last; NaN without any."""
        if not self.samples:
            return math.nan, math.nan
        count = max(len(self.samples) // 5, 1)
        second = self.samples[count : 2 * count] or self.samples
        return statistics.median(second), statistics.median(self.samples[-count:])


@dataclass(frozen=True)
class Stretch:
    """One start of a run: how it ended, how many steps it made, and its memory."""

    ended: str
    steps: int
    first: float
    last: float
    between: str = ""


def stretch(run: KillableRun, stop_after: int | None, how: int | None) -> Stretch:
    """Start the run; after so many steps send it the signal ``how``; without, let it end itself.

    A signal from elsewhere ends a stretch as well as one from here.
    """
    process = run.start()
    with Memory(run, process) as memory:
        while process.poll() is None:
            if how is not None and run.steps_logged() >= (stop_after or 0):
                process.send_signal(how)
                break
            time.sleep(0.02)
        status = process.wait()
    if status not in ENDINGS:
        raise SystemExit(f"{run.folder} ended with status {status}:\n{run.tail()}")
    return Stretch(ENDINGS[status], run.steps_logged(), *memory.fifths())


def use_artefact(run: KillableRun, folder: Path, dice: random.Random) -> str:
    """Evaluate or export the finished run in a process of its own; what was done, and its score."""
    target = folder / f"export-{time.monotonic_ns()}"
    kind = dice.choice(("eval", "merged", "lora"))
    words = {
        "eval": ["eval", str(run.folder), "--format", "json"],
        "merged": ["export", str(run.folder), "--to", "merged", "--output", str(target)],
        "lora": ["export", str(run.folder), "--to", "lora", "--output", str(target)],
    }[kind]
    done = subprocess.run(
        [sys.executable, "-m", "adalora", *words],
        capture_output=True,
        text=True,
        env=environment(),
    )
    if done.returncode:
        raise SystemExit(f"adalora {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return f"{kind} {json.loads(done.stdout)}" if kind == "eval" else kind


def soak(folder: Path, steps: int, interruptions: int, dice: random.Random) -> tuple[Table, bool]:
    """Run both, and compare; the table of all starts, and whether all is well."""
    whole, harried = (KillableRun(folder / name, flags_for(steps)) for name in ("whole", "harried"))
    stretches = [stretch(whole, None, None)]
    if stretches[0].ended != "its end":
        raise SystemExit(f"The run that was to be left alone was ended by {stretches[0].ended}.")
    scores = set()
    for number in range(interruptions):
        ahead = 2 * (steps - harried.checkpoint()) // (interruptions - number + 1)
        how = dice.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        one = stretch(harried, dice.randint(1, max(ahead, 1)), how)
        print(f"start {number + 1}: {one}", file=sys.stderr, flush=True)
        between = use_artefact(whole, folder, dice)
        if between.startswith("eval"):
            scores.add(between)
        stretches.append(Stretch(one.ended, one.steps, one.first, one.last, between[:40]))
        if one.ended == "its end":
            break
    while stretches[-1].ended != "its end":
        stretches.append(stretch(harried, None, None))
    table = Table("run", "ended by", "steps", "MB early", "MB late", "in between")
    grown = []
    for number, one in enumerate(stretches):
        name = "whole" if number == 0 else f"start {number}"
        if one.steps >= ENOUGH_STEPS and one.last - one.first > MOST_GROWTH:
            grown.append(name)
        sizes = (f"{one.first / MEGABYTE:.0f}", f"{one.last / MEGABYTE:.0f}")
        table.add_row(name, one.ended, str(one.steps), *sizes, one.between)
    different = differences(whole, harried)
    verdict = f"DIFFERS: {', '.join(different)}" if different else "bit-equal"
    if grown:
        verdict += f"; GREW: {', '.join(grown)}"
    if len(scores) > 1:
        verdict += f"; SCORES DIFFER: {scores}"
    table.add_row("verdict", verdict)
    return table, not (different or grown or len(scores) > 1)


def main() -> int:
    """Soak, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=2000, help="of the run")
    parser.add_argument("--interruptions", type=int, default=12, help="kills and signals")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and signals")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table, good = soak(
            Path(folder), flags.steps, flags.interruptions, random.Random(flags.seed)
        )
    Console(width=110).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

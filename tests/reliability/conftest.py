"""Real processes to be killed, and the programs that kill them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
#: AdaLoRA on the built-in model for two dozen steps.
FLAGS = (
    "--model_name_or_path nano --task_name mini-rte --do_train --do_eval --apply_lora "
    "--apply_adalora --lora_type svd --lora_r 2 --target_rank 1 --init_warmup 5 --final_warmup 8 "
    "--mask_interval 2 --max_steps 24 --learning_rate 2e-3 --max_train_samples 80 "
    "--max_val_samples 16 --max_seq_length 48 --per_device_train_batch_size 4 --save_steps 4 "
    "--logging_steps 1 --report_to none --disable_tqdm True --seed 6"
).split()


def local_module(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    sys.path.insert(0, str(HERE))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture
def start_run(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes a ``KillableRun`` of the small flags, and more; what is left of it is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def make(*more: str, processes: int = 1) -> Any:
        run = local_module("killable_run").KillableRun(
            tmp_path / "run", [*FLAGS, *more], processes=processes
        )
        start = run.start

        def remembered() -> subprocess.Popen[bytes]:
            started.append(start())
            return started[-1]

        run.start = remembered
        return run

    yield make
    for process in started:
        if process.poll() is None:
            process.kill()


@pytest.fixture(scope="session")
def fuzz_readers() -> ModuleType:
    return local_module("fuzz_readers")


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program in a process of its own, with more variables in its environment."""

    def run(program: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = local_module("killable_run").environment() | more
        # The fixtures' own path first: the tests run what they import.
        environment["PYTHONPATH"] = ":".join(sys.path)
        return subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=240,
        )

    return run

"""A real training run in processes of its own that can be killed, stopped and started again.

Shared by ``kill_and_resume.py``, ``soak.py`` and the tests beside them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from adalora.storage.snapshots import snapshots, verify

PROJECT_ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds that one start may take to get where it is awaited
PROGRAM = PROJECT_ROOT / "examples" / "text-classification" / "run_glue.py"
#: Which process of which job this is belongs to the launcher alone.
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")


class KillableRun:
    """One run in its own folder, started as often as it takes.

    Args:
        folder: of the run; what it prints goes to a file beside it.
        flags: of ``run_glue.py``; ``--logging_steps 1`` is what steps are counted by.
        processes: 1, or as many as torchrun is to start.
    """

    def __init__(self, folder: Path, flags: Sequence[str], *, processes: int = 1) -> None:
        self.folder = folder
        self.processes = processes
        self.flags = [*flags, "--root_output_dir", str(folder)]
        self.model = folder / "model"
        self.output = folder.with_suffix(".out")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the program, alone or through torchrun."""
        command = [sys.executable]
        if self.processes > 1:
            command += ["-m", "torch.distributed.run", f"--nproc_per_node={self.processes}"]
            command += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [*command, str(PROGRAM), *self.flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
            )

    def finish(self) -> None:
        """Start the run and let it come to its end.

        Raises:
            SystemExit: if it fails.
        """
        process = self.start()
        if status := process.wait():
            raise SystemExit(f"{self.folder} ended with status {status}:\n{self.tail()}")

    def wait_until(self, process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> bool:
        """Wait for ``reached``; False if the run ended before.

        Raises:
            SystemExit: if it failed, or never gets there.
        """
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if process.poll() is not None:
                if process.returncode:
                    raise SystemExit(f"{self.folder} failed by itself:\n{self.tail()}")
                return False
            if time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"{self.folder} did not get there:\n{self.tail()}")
            time.sleep(0.001)
        return True

    def kill_when(self, reached: Callable[[], bool], delay: float) -> bool:
        """Start the run; kill all of it ``delay`` seconds after ``reached``; False if too late."""
        process = self.start()
        if not self.wait_until(process, reached):
            return False
        time.sleep(delay)
        # torchrun's workers are sessions of their own, and would outlive it.
        victims = [] if process.poll() is not None else psutil.Process(process.pid).children(True)
        for victim in (*victims, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        psutil.wait_procs(victims, timeout=30)
        return process.wait() < 0

    def worker(self, process: subprocess.Popen[bytes], rank: int) -> psutil.Process:
        """The process of one rank among those that torchrun has started."""
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if child.environ().get("RANK") == str(rank):
                    return child
        raise SystemExit(f"{self.folder} has no process of rank {rank}:\n{self.tail()}")

    def printed(self) -> str:
        """All it printed since this start."""
        return self.output.read_text(errors="replace")

    def tail(self) -> str:
        """What it printed last."""
        return self.printed()[-3000:]

    def steps_logged(self) -> int:
        """Optimizer steps since this start, as the program has printed them."""
        return self.printed().count("{'loss'")

    def half_written(self) -> bool:
        """Whether a checkpoint lies there that was not finished."""
        return any(self.model.glob(".checkpoint-*.partial"))

    def checkpoint(self) -> int:
        """Step of the last checkpoint; every one that has its name must be whole."""
        found = [verify(path).step for path in snapshots(self.model)]
        return found[-1] if found else 0


def environment() -> dict[str, str]:
    """For a child that computes with one thread and asks no network."""
    own = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    return own | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def free_port() -> str:
    """A port for the processes to meet at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def evidence(run: KillableRun) -> dict[str, Any]:
    """All that must be the same: digests of tensors by file, ranks, scores, the log of losses."""
    last = snapshots(run.model)[-1]
    found: dict[str, Any] = {
        f"{last.name}/{name}": digest
        for name, (_, digest) in verify(last).files.items()
        if name.endswith(".safetensors")
    }
    for name in ("adapter.safetensors", "head.safetensors"):
        found[name] = (run.model / name).read_bytes()
    found["rank_pattern.json"] = json.loads((run.folder / "rank_pattern.json").read_text())
    state = json.loads((run.model / "trainer_state.json").read_text())
    timed = ("runtime", "per_second")
    found["log"] = [
        {key: value for key, value in entry.items() if not key.endswith(timed)}
        for entry in state["log_history"]
    ]
    return found


def differences(one: KillableRun, other: KillableRun) -> list[str]:
    """Names of what two finished runs do not have in common, bit for bit."""
    mine, theirs = evidence(one), evidence(other)
    return sorted(
        name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)
    )

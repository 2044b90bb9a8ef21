"""Runs as processes of this machine: how many fit, their command and end, what became of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from adalora.errors import UserError
from adalora.results.record import RECORD_FILE, RunRecord
from adalora.runtime.machine import available_memory, usable_cores
from adalora.storage.atomic import locked_folder, without_links
from adalora.storage.snapshots import newest_sound

OUTPUT_FILE = "output.txt"
#: What a job runs: a whole run, or a few of its steps.
TRAIN, MEASURE = ("adalora.sweeps.child", "train"), ("adalora.sweeps.child", "measure")
#: A process that is asked to end saves a checkpoint first.
GRACE_SECONDS = 60.0
#: Every process that could outlive a killed sweep ends by itself within a moment.
_ORPHAN_SECONDS = 30.0
_SHOWN_LINES = 4


@dataclass(frozen=True)
class Job:
    """What a process does."""

    id: str  #: of the cell
    words: Sequence[str]  #: the flags of run_glue.py, but where to write
    folder: Path  #: where to write
    program: Sequence[str] = TRAIN  #: the module that is run, and its words in front of the flags
    threads: int = 1  #: that it computes with
    #: variables of its own, such as the GPU that it sees
    environment: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    """Where jobs are run: ``LocalProcesses`` here, and ``cluster.RayCluster``."""

    def has_room(self) -> bool:
        """Whether another job may be started now."""

    def start(self, job: Job) -> None:
        """Begin a job; its folder is ready for it."""

    def ended(self, seconds: float) -> Sequence[tuple[Job, int]]:
        """Jobs that have ended, with their exit status; waits so long for the first."""

    def stop(self) -> None:
        """End the jobs that run, and give back what was taken."""


def prepare(folder: Path) -> None:
    """Make the folder of a run ready: as it is if it holds a sound checkpoint, empty otherwise.

    One in which another process is still at work is refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _ORPHAN_SECONDS
    while True:
        try:
            with locked_folder(folder):
                break
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    if (folder / "model").is_dir() and newest_sound(folder / "model") is None:
        shutil.rmtree(folder)
        folder.mkdir(parents=True)


def start(job: Job) -> subprocess.Popen[bytes]:
    """Start the process in a session of its own, so that a Ctrl-C reaches the sweep alone.

    Its standard input is a pipe from this process, whose end says that this process is gone.
    """
    # -P keeps files of the current folder from standing in for installed packages.
    program = [sys.executable, "-P", "-m", *job.program, *job.words]
    own = {"TOKENIZERS_PARALLELISM": "false", **os.environ, "OMP_NUM_THREADS": str(job.threads)}
    with open(job.folder / OUTPUT_FILE, "ab", opener=without_links) as output:
        return subprocess.Popen(
            [*program, "--root_output_dir", str(job.folder)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**own, **job.environment},
            start_new_session=True,
        )


def end_all(processes: Sequence[subprocess.Popen[bytes]], grace: float = GRACE_SECONDS) -> None:
    """Ask all to end, wait, and kill those that do not."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace
    try:
        for process in processes:
            process.wait(max(deadline - time.monotonic(), 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.kill()
            process.wait()


def outcome_of(folder: Path, status: int) -> RunRecord | str:
    """The record of a run whose process has ended, or why there is none, in a few words."""
    if status == 0:
        try:
            return RunRecord.read(folder / RECORD_FILE)
        except UserError as error:
            return str(error)
    return error_of(folder / OUTPUT_FILE, status)


def error_of(output: Path, status: int) -> str:
    """Why a process ended with ``status``: its own sentence, or the last lines it wrote."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    if said is not None:
        return said.removeprefix("error: ")
    last = "; ".join(line.strip() for line in lines[-_SHOWN_LINES:]) or "no output"
    if status < 0:
        name = signal.Signals(-status).name
        why = ", as when memory runs out" if -status == signal.SIGKILL else ""
        return f"Killed by {name}{why}; the last lines were: {last}"
    return f"Ended with status {status}; the last lines were: {last}"


#: Memory that a run of a small encoder takes on the CPU, measured at 0.9 to 1.2 GiB for MiniLM.
_RUN_BYTES = 2 * 2**30
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Room:
    """How many runs at a time, with how many threads each, on which GPUs in turn."""

    slots: int
    threads: int
    gpus: Sequence[str] = ()


def room_here(jobs: int | None, threads: int | None = None) -> Room:
    """What fits on this machine: a run per GPU, or else as many as cores and memory allow.

    The user may ask for ``jobs`` runs at a time, and ``threads`` of each; without the latter it is
    OMP_NUM_THREADS, or the cores are shared out.
    """
    gpus, cores = _gpus(), usable_cores()
    in_environment = os.environ.get("OMP_NUM_THREADS", "")
    asked = threads or (int(in_environment) if in_environment.isdigit() else 0)
    # Runs with several threads each fill the cores with fewer runs.
    fitting = min(cores // (asked or 1), available_memory() // _RUN_BYTES)
    slots = jobs or len(gpus) or max(fitting, 1)
    return Room(slots, asked or max(cores // slots, 1), gpus)


def _gpus() -> list[str]:
    """Names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    count = torch.cuda.device_count()
    shown = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return shown if len(shown) == count else [str(index) for index in range(count)]


class LocalProcesses:
    """An executor of ``room.slots`` processes."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._free = list(range(room.slots))
        self._running: dict[str, tuple[Job, subprocess.Popen[bytes], int]] = {}

    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def start(self, job: Job) -> None:
        """Begin a job in a free slot."""
        slot = self._free.pop(0)
        gpus = self.room.gpus
        own = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        job = replace(job, threads=self.room.threads, environment={**job.environment, **own})
        self._running[job.id] = job, start(job), slot

    def ended(self, seconds: float) -> Sequence[tuple[Job, int]]:
        """Jobs that have ended, with their exit status; waits so long for the first."""
        deadline = time.monotonic() + seconds
        while True:
            found = [run for run in self._running.values() if run[1].poll() is not None]
            if found or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
        for job, process, slot in found:
            del self._running[job.id]
            self._free.append(slot)
            if process.stdin is not None:
                process.stdin.close()
        return [(job, process.returncode) for job, process, _ in found]

    def stop(self) -> None:
        """End the jobs that run; those that do not end in good time are killed."""
        end_all([process for _, process, _ in self._running.values()])
        self._running.clear()

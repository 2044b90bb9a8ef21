"""Runs in processes of this machine, as many at a time as its cores, memory or GPUs hold."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adalora.runs.machine import usable_cores
from adalora.sweeps.job import Job, end_all, start

__all__ = ["LocalProcesses", "Room", "room_here"]

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
    """What fits on this machine: a run per GPU, or else a run per core while memory lasts.

    Args:
        jobs: as many as the user asks for; None for as many as fit.
        threads: likewise, of each run; None takes OMP_NUM_THREADS, or shares the cores out.
    """
    import psutil  # type: ignore[import-untyped]

    gpus, cores = _gpus(), usable_cores()
    in_memory = int(psutil.virtual_memory().available // _RUN_BYTES)
    slots = jobs or len(gpus) or max(min(cores, in_memory), 1)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = threads or (int(asked) if asked.isdigit() else 0) or max(cores // slots, 1)
    return Room(slots, threads, gpus)


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
            found = [
                (job, process, slot)
                for job, process, slot in self._running.values()
                if process.poll() is not None
            ]
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

"""Runs on a Ray cluster, for where one machine is not enough (the extra ``adalora[sweep]``).

A node needs this package, and the model and data at the paths that the flags name. It does not
need a disk in common: a run writes in a folder of the node, which is sent back whole when it ends.
"""

from __future__ import annotations

import io
import math
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adalora.errors import UserError
from adalora.shell import program
from adalora.sweeps.processes import OUTPUT_FILE, Job, end_all, start


class RayCluster:
    """An executor over Ray's tasks.

    Each run has ``threads``, and as many CPUs. ``address`` is that of a running cluster ("auto"
    finds the one of this machine); None starts one here.

    Raises:
        UserError: if Ray is not installed, or the cluster is out of reach.
    """

    def __init__(self, *, threads: int, address: str | None = None) -> None:
        try:
            import ray  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise UserError(
                f"--executor ray needs the package ray: {program('pip')} install 'adalora[sweep]'."
            ) from error
        self._ray: Any = ray
        try:
            self._ray.init(
                address=address, include_dashboard=False, log_to_driver=False, logging_level="error"
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"The Ray cluster at {address or 'this machine'} is out of reach: {error}"
            ) from error
        gpus = 1 if self._ray.cluster_resources().get("GPU", 0) >= 1 else 0
        self.threads = threads
        self.slots = max(self._places("GPU", 1) if gpus else self._places("CPU", threads), 1)
        self._work = self._ray.remote(num_cpus=threads, num_gpus=gpus)(_work)
        self._running: dict[Any, Job] = {}

    def _places(self, kind: str, each: int) -> int:
        return math.floor(self._ray.cluster_resources().get(kind, 0) / each)

    def has_room(self) -> bool:
        """Always: Ray keeps what it has no room for, and clusters may grow by it."""
        return True

    def start(self, job: Job) -> None:
        """Give a job to Ray."""
        self._running[self._work.remote(replace(job, threads=self.threads))] = job

    def ended(self, seconds: float) -> Sequence[tuple[Job, int]]:
        """Jobs that have ended, with their exit status; waits so long for the first."""
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), timeout=seconds)
        return [(job, self._fetch(one, job)) for one in ready for job in [self._running.pop(one)]]

    def _fetch(self, reference: Any, job: Job) -> int:
        """Put the folder of a run where it belongs, and return the exit status."""
        try:
            status, archive = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            text = f"error: Ray could not run it: {reason[-1]}\n"
            (job.folder / OUTPUT_FILE).write_text(text, encoding="utf-8")
            return 1
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(job.folder, filter="data")
        return int(status)

    def stop(self) -> None:
        """Cancel what runs, and leave the cluster."""
        for reference in self._running:
            self._ray.cancel(reference)
        self._running.clear()
        self._ray.shutdown()


def _work(job: Job) -> tuple[int, bytes]:
    """Do a job on this node; the exit status and the folder that it has written, as an archive."""
    with tempfile.TemporaryDirectory(prefix="adalora-") as name:
        folder = Path(name) / "run"
        folder.mkdir()
        process = start(replace(job, folder=folder))
        try:
            status = process.wait()
        finally:
            end_all([process])
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as files:
            files.add(folder, arcname=".", filter=_without_checkpoints)
        return status, archive.getvalue()


def _without_checkpoints(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(entry.name).parts
    return None if any(part.startswith(("checkpoint-", ".")) for part in parts) else entry

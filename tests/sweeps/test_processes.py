"""Runs as processes: so many at a time, ended in order, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adalora.storage.atomic import locked_folder
from adalora.sweeps import processes
from adalora.sweeps.processes import (
    OUTPUT_FILE,
    Job,
    LocalProcesses,
    Room,
    end_all,
    error_of,
    outcome_of,
    prepare,
    room_here,
    start,
)

Make = Callable[..., Any]


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def make_job(tmp_path: Path, quick: str) -> Make:
    def make(name: str, do: str) -> Job:
        folder = tmp_path / name
        folder.mkdir()
        return Job(name, ("--do", do), folder, program=(quick,))

    return make


def drain(executor: LocalProcesses, jobs: int) -> dict[str, int]:
    found: dict[str, int] = {}
    while len(found) < jobs:
        found |= {job.id: status for job, status in executor.ended(60)}
    return found


def test_no_more_run_at_a_time_than_there_are_slots_and_each_status_is_told(make_job: Make) -> None:
    executor = LocalProcesses(Room(slots=2, threads=3))
    jobs = [
        make_job("good", "time.sleep(0.2)"),
        make_job("bad", "print('error: no such thing'); sys.exit(2)"),
        make_job("killed", "os.kill(os.getpid(), signal.SIGKILL)"),
    ]
    executor.start(jobs[0])
    assert executor.has_room()
    executor.start(jobs[1])
    assert not executor.has_room()
    found = {job.id: status for job, status in executor.ended(60)}
    assert executor.has_room()
    executor.start(jobs[2])
    found |= drain(executor, 3 - len(found))
    assert found == {"good": 0, "bad": 2, "killed": -signal.SIGKILL}
    # The cores were shared out.
    assert (jobs[0].folder / "began").read_text() == "3"
    assert outcome_of(jobs[1].folder, 2) == "no such thing"
    assert "Killed by SIGKILL, as when memory runs out" in str(outcome_of(jobs[2].folder, -9))


def test_a_run_that_ends_well_without_a_record_has_failed(make_job: Make) -> None:
    job = make_job("empty", "pass")
    executor = LocalProcesses(Room(slots=1, threads=1))
    executor.start(job)
    assert drain(executor, 1) == {"empty": 0}
    assert "no run has finished there" in str(outcome_of(job.folder, 0))


def test_stopping_ends_every_process_and_lets_each_save(make_job: Make) -> None:
    executor = LocalProcesses(Room(slots=2, threads=1))
    save = (
        "signal.signal(signal.SIGTERM, lambda *x: ((folder / 'saved').touch(), sys.exit(143)));"
        "(folder / 'ready').touch(); time.sleep(60)"
    )
    jobs = [make_job(name, save) for name in ("one", "two")]
    for job in jobs:
        executor.start(job)
    until(lambda: all((job.folder / "ready").exists() for job in jobs))
    executor.stop()
    assert all((job.folder / "saved").exists() for job in jobs)
    assert not any((job.folder / "done").exists() for job in jobs)


def test_a_process_that_will_not_end_is_killed(make_job: Make) -> None:
    deaf = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); (folder / 'ready').touch(); time.sleep(60)"
    )
    job = make_job("deaf", deaf)
    process = start(job)
    until((job.folder / "ready").exists)
    end_all([process], grace=0.2)
    assert process.returncode == -signal.SIGKILL


def test_a_ctrl_c_in_the_terminal_reaches_the_sweep_alone(make_job: Make) -> None:
    job = make_job("own", "(folder / 'ready').touch(); time.sleep(60)")
    process = start(job)
    until((job.folder / "ready").exists)
    try:
        assert os.getpgid(process.pid) != os.getpgid(0)
    finally:
        end_all([process])


@pytest.mark.slow
def test_a_run_ends_by_itself_when_its_sweep_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    # The real child: it watches while it imports, reads data and trains.
    sweep = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time; from pathlib import Path\n"
            "from adalora.sweeps.processes import Job, start\n"
            "words = '--model_name_or_path nano --task_name mini-rte --do_train'.split()\n"
            "process = start(Job('run', words, Path(sys.argv[1])))\n"
            "print(process.pid, flush=True); time.sleep(600)",
            str(folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sweep.stdout is not None
    child = int(sweep.stdout.readline())
    os.kill(child, 0)
    sweep.kill()
    sweep.wait()

    def gone() -> bool:
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        return state == "Z"

    until(gone)


def test_a_folder_without_a_checkpoint_starts_afresh_and_a_busy_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "head.safetensors").touch()
    prepare(folder)
    assert list(folder.iterdir()) == []
    monkeypatch.setattr("adalora.sweeps.processes._ORPHAN_SECONDS", 0.3)
    with locked_folder(folder), pytest.raises(ValueError, match="is in use"):
        prepare(folder)


def test_an_error_is_the_programs_own_sentence_or_its_last_lines(tmp_path: Path) -> None:
    output = tmp_path / OUTPUT_FILE
    output.write_text("loading\nerror: --lora_r is 0.\nTraceback\n", encoding="utf-8")
    assert error_of(output, 2) == "--lora_r is 0."
    output.write_bytes(b"Traceback\n  File x\n\nKeyError: 'a\xff'\n")
    assert error_of(output, 1).startswith("Ended with status 1; the last lines were: Traceback; ")
    assert "KeyError" in error_of(output, 1)
    assert "no output" in error_of(tmp_path / "absent", 1)


def test_as_many_fit_as_there_are_cores_unless_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    room = room_here(None)
    assert room.slots >= 1
    assert room.slots * room.threads <= (os.cpu_count() or 1) or room.threads == 1 or room.gpus
    assert room_here(3).slots == 3
    assert room_here(2, 5).threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert (room_here(2).threads, room_here(2, 5).threads) == (7, 5)


@pytest.mark.parametrize(
    ("variable", "threads", "cores", "gigabytes", "slots"),
    [
        ("", None, 8, 100, 8),
        ("4", None, 8, 100, 2),
        ("", 3, 8, 100, 2),
        ("4", 2, 8, 100, 4),  # the flag counts
        ("16", None, 8, 100, 1),
        ("", 2, 8, 5, 2),  # memory for two
    ],
)
def test_slots_times_threads_is_no_more_than_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    threads: int | None,
    cores: int,
    gigabytes: int,
    slots: int,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    monkeypatch.setattr(processes, "_gpus", list)
    monkeypatch.setattr(processes, "usable_cores", lambda: cores)
    monkeypatch.setattr(processes, "available_memory", lambda: gigabytes * 2**30)
    room = room_here(None, threads)
    assert room.slots == slots
    assert room.slots == 1 or room.slots * room.threads <= cores

"""Processes that die, and signals to real ones: who ends, when, with what to say, and what then."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_a_lost_process_ends_its_job_which_goes_on_and_stops_at_a_signal_to_one(
    start_run: Callable[..., Any],
) -> None:
    run = start_run(processes=2)
    process = run.start()
    run.wait_until(process, lambda: run.steps_logged() >= 6)
    run.worker(process, 1).kill()
    killed = time.monotonic()
    process.wait(timeout=60)
    assert time.monotonic() - killed < 60
    assert process.returncode != 0
    said = run.printed()
    assert "error (process 0): Another process of this job went away" in said
    assert f"The same command goes on from {run.model / 'checkpoint-4'}" in said
    assert run.checkpoint() == 4

    process = run.start()
    run.wait_until(process, lambda: run.steps_logged() >= 2)
    run.worker(process, 1).send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    step = run.checkpoint()
    assert (
        f"Stopped by SIGTERM after step {step} of 24; its checkpoint was written" in run.printed()
    )
    assert "Another process" not in run.printed()
    assert "exitcode  : 143" in run.printed()

    run.finish()
    assert (run.model / "adalora.json").is_file()


@pytest.mark.slow
def test_a_stopped_run_ends_by_the_signals_status_and_the_second_signal_at_once(
    start_run: Callable[..., Any],
) -> None:
    run = start_run()
    process = run.start()
    run.wait_until(process, lambda: run.steps_logged() >= 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    step = run.checkpoint()
    assert f"Stopped by SIGTERM after step {step} of 24" in run.printed()
    assert "Traceback" not in run.printed()

    # Whole steps take long enough here for a second signal to find the first one's.
    run = start_run("--resume_from_checkpoint", "True", "--force_resume")
    run.flags[run.flags.index("--per_device_train_batch_size") + 1] = "400"
    process = run.start()
    run.wait_until(process, lambda: run.steps_logged() >= 1)
    process.send_signal(signal.SIGINT)
    run.wait_until(process, lambda: "SIGINT: a checkpoint follows" in run.printed())
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    assert "Stopped by" not in run.printed()
    assert run.checkpoint() == step

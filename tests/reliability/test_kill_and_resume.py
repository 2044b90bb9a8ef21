"""Real training processes, killed and resumed; the long form is kill_and_resume.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
def test_two_processes_killed_in_a_checkpoint_and_resumed_end_bit_equal(tmp_path: Path) -> None:
    """Seed 33: in the checkpoint of the final phase; it goes on from where the budget shrinks."""
    # Which process of which job this is belongs to the launcher alone.
    launched = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--variants", "two-processes"),
            *("--kills", "1", "--seed", "33", "--folder", str(tmp_path / "runs")),
        ],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in launched},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-equal" in done.stdout

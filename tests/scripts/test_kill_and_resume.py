"""Real training processes, killed and resumed; the whole of it is scripts/kill_and_resume.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "kills", "seed"), [("accumulation", 2, 3), ("two-processes", 1, 5)]
)
def test_killed_at_random_and_resumed_a_run_ends_bit_equal(
    variant: str, kills: int, seed: int, tmp_path: Path
) -> None:
    flags = ["--variants", variant, "--kills", str(kills), "--seed", str(seed)]
    # Which process of which job this is belongs to the launcher alone.
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")
    }
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        env=inherited,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-equal" in done.stdout


def test_a_variant_that_is_not_there_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--variants", "float64"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no variant float64; there are float32, bf16" in done.stderr

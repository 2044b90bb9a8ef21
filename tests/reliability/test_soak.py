"""A run under everything that happens to long runs; the long form is soak.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("soak.py")


@pytest.mark.slow
def test_an_interrupted_run_with_uses_of_another_in_between_ends_bit_equal() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--steps", "20", "--interruptions", "1", "--seed", "2"],
        capture_output=True,
        text=True,
        env=os.environ,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-equal" in done.stdout
    assert "SIG" in done.stdout

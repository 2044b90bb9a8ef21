"""Measurements that need a process of their own, because they are of the whole process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

__all__ = ["answer_of"]


def answer_of(module: str, *words: str) -> Any:
    """What ``python -m MODULE WORDS`` prints as JSON in its last line."""
    done = subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])

"""What a process holds in memory, as Linux counts it.

Not ``getrusage``: its peak is passed on to a child, which then has its parent's.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["resident_bytes"]


def resident_bytes(quantity: str) -> int:
    """A line of this process's status: ``VmRSS``, ``VmHWM`` (its peak) or ``RssAnon``."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(quantity))
    return int(line.split()[1]) * 1024

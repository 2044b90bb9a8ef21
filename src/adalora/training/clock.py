"""Durations by a clock that nobody sets.

The installed Trainer takes the time of day at the beginning and the end of its work. A clock that
is set in between (by hand, by the network, after a suspended machine wakes up) makes its durations
and speeds wrong, and negative if it is set back.
"""

from __future__ import annotations

import time
from typing import Any

__all__ = ["Stopwatch"]

#: Seconds, and share of a duration, by which the two clocks may come apart without being set.
_CLOSE, _DRIFT = 1.0, 0.01


class Stopwatch:
    """Started where a piece of the Trainer's work begins, and asked where it has ended."""

    def __init__(self) -> None:
        self._day, self._steady = time.time(), time.monotonic()

    def correct(self, metrics: dict[str, Any], prefix: str) -> None:
        """Put the true duration where the clock was set; its speeds are left out then.

        Args:
            metrics: with ``<prefix>_runtime`` and ``<prefix>_..._per_second``; changed in place.
            prefix: such as ``train`` or ``eval``.
        """
        if f"{prefix}_runtime" not in metrics:
            return
        told, seconds = time.time() - self._day, time.monotonic() - self._steady
        if abs(told - seconds) <= _CLOSE + _DRIFT * seconds:
            return
        metrics[f"{prefix}_runtime"] = round(seconds, 4)
        speeds = [key for key in metrics if key.startswith(prefix) and key.endswith("_per_second")]
        for key in speeds:
            del metrics[key]

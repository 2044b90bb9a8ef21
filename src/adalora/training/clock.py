"""Durations by a clock that nobody sets.

The installed Trainer takes the time of day at the beginning and the end of its work. A clock that
is set in between (by hand, by the network, after a suspended machine wakes up) makes its durations
and speeds wrong, and negative if it is set back.
"""

from __future__ import annotations

from typing import Any

__all__ = ["correct_durations"]

#: Seconds by which the two clocks may differ by the work between their readings.
_CLOSE = 1.0


def correct_durations(metrics: dict[str, Any], prefix: str, seconds: float) -> None:
    """Put ``seconds`` for a duration that a set clock made wrong; its speeds are left out then.

    Args:
        metrics: with ``<prefix>_runtime`` and ``<prefix>_..._per_second``; changed in place.
        prefix: such as ``train`` or ``eval``.
        seconds: what a monotonic clock says.
    """
    told = metrics.get(f"{prefix}_runtime")
    if told is None or abs(told - seconds) <= _CLOSE + 0.01 * seconds:
        return
    metrics[f"{prefix}_runtime"] = round(seconds, 4)
    for key in [key for key in metrics if key.startswith(prefix) and key.endswith("_per_second")]:
        del metrics[key]

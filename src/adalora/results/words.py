"""Numbers, sizes and durations as people read them: the one home of such words for every room."""

from __future__ import annotations

import math
from collections.abc import Sequence


def number(value: float | None, digits: int = 4) -> str:
    """A measured value with ``digits`` decimals; "–" for none, "not finite" where it is not."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "not finite"


def compact(value: float) -> str:
    """A count or a small fraction, short enough for an axis: 1.2M, 300k, 50, 0.002, 3e-07."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as "9.3 s", "2 min 5 s" or "3 h 12 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def megabytes(size: float | None) -> str:
    """Bytes as "512 MiB" or "1.3 GiB"."""
    if size is None or not math.isfinite(size):
        return "–"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def plural(count: int, word: str) -> str:
    """ "1 run", "1,200 runs"."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def enumerate_words(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def span(values: Sequence[float]) -> str:
    """ "59.3k", or "59.3k to 61k" where the values differ visibly."""
    if not values:
        return "–"
    low, high = compact(min(values)), compact(max(values))
    return low if low == high else f"{low} to {high}"

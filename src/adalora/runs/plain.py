"""Values as JSON has them: numbers that are not finite become null."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["plain"]


def plain(value: Any) -> Any:
    """``value`` in dictionaries, lists, texts and numbers; None for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if callable(getattr(value, "item", None)):  # a scalar of NumPy or torch
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

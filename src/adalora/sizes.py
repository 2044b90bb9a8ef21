"""Numbers that no real run or model has, refused before anything is made by them.

A configuration with a million layers is damage, or meant to keep a machine busy; a learning rate
that is NaN is a slip of the pen. Both would be found out late, or never.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adalora.errors import UserError

__all__ = ["BELOW_ONE", "check_model_sizes", "check_numbers"]

#: The largest number below 1, for ranges that leave 1 out.
BELOW_ONE = math.nextafter(1.0, 0.0)
#: Far beyond any published encoder.
_MODEL = {
    "num_hidden_layers": (1, 1_000),
    "hidden_size": (1, 100_000),
    "intermediate_size": (1, 1_000_000),
    "num_attention_heads": (1, 10_000),
    "vocab_size": (1, 10_000_000),
    "max_position_embeddings": (1, 10_000_000),
    "max_relative_positions": (-1, 10_000_000),
    "position_buckets": (-1, 1_000_000),
    "type_vocab_size": (0, 10_000),
    "embedding_size": (1, 100_000),
}


def check_numbers(arguments: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse a field of ``arguments`` that is out of its range; None is none, and passes.

    Raises:
        UserError: naming the first.
    """
    for name, (least, most) in ranges.items():
        value = getattr(arguments, name)
        # Written so that NaN, which compares with nothing, is refused.
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value}; it must be from {least:.9g} to {most:.9g}.")


def check_model_sizes(config: Any, name: str) -> None:
    """Refuse a configuration whose sizes no model has.

    Raises:
        UserError: naming the first of them.
    """
    for field, (least, most) in _MODEL.items():
        value = getattr(config, field, None)
        if isinstance(value, int | float) and not least <= value <= most:
            raise UserError(
                f"The configuration of {name!r} says {field} {value}, and from {least} to {most} "
                "is believed: it is damaged, or meant to do damage; fetch it anew."
            )

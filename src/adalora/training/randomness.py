"""The random generators of a process: their state as tensors and numbers, and keeping it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "random_state_kept", "set_random_state"]


def random_state() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, on every CUDA device too.

    Returns:
        ``python`` [version, 625 integers, spare normal], ``numpy`` with ``key`` [624] uint32, and
        ``torch`` uint8; ``cuda`` maps a device's index to uint8.
    """
    version, internal, spare = random.getstate()
    _, key, position, has_normal, normal = np.random.get_state()
    return {
        "python": [version, list(internal), spare],
        "numpy": {
            "key": torch.from_numpy(np.array(key, dtype=np.uint32)),
            "rest": [int(position), int(has_normal), float(normal)],
        },
        "torch": torch.random.get_rng_state(),
        "cuda": {
            str(index): state
            for index, state in enumerate(
                torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
            )
        },
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator where ``random_state`` found it; devices that are not here are left."""
    version, internal, spare = state["python"]
    random.setstate((version, tuple(internal), spare))
    np.random.set_state(("MT19937", state["numpy"]["key"].numpy(), *state["numpy"]["rest"]))
    torch.random.set_rng_state(state["torch"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index, device_state in state.get("cuda", {}).items():
        if int(index) < devices:
            torch.cuda.set_rng_state(device_state, int(index))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever is drawn inside, the generators go on afterwards as if nothing had been."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)

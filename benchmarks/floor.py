"""The least a step can cost: its matrix products, at the rate this machine multiplies."""

from __future__ import annotations

import statistics
import time

import torch

__all__ = ["linear_floor", "product_rate"]

HIDDEN, WIDE = 768, 3072


def product_rate(precision: str, *, rows: int = 1024, rounds: int = 15) -> float:
    """Operations per second of the feed-forward layer's product, median."""
    dtype = getattr(torch, precision)
    x, weight = torch.randn(rows, HIDDEN).to(dtype), torch.randn(WIDE, HIDDEN).to(dtype)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - started)
    return 2 * rows * HIDDEN * WIDE / statistics.median(seconds)


def linear_floor(layers: int, tokens: int, length: int, precision: str) -> float:
    """Seconds: linear layers and attention products, forward and through activations.

    Linear layers take 2 operations per weight and token each way. Attention multiplies queries by
    keys, by the positions that a row can meet, keys by those likewise, and probabilities by values:
    2 · length · hidden operations per token and product, twice as much backward.
    """
    weights = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * WIDE
    linear = 4 * weights * tokens
    attention = 3 * 4 * 2 * length * HIDDEN * tokens
    return layers * (linear + attention) / product_rate(precision)

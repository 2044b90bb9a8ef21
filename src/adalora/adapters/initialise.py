"""Where the factors of LoRA layers start, if not where the original draws them.

Each function works on one layer in place, and the layer computes what its base does afterwards.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

import loralib
from adalora.errors import UserError

__all__ = ["INITIALISATIONS", "Initialisation", "initialise"]

Initialisation = Literal["gaussian", "orthogonal"]
INITIALISATIONS = get_args(Initialisation)


def initialise(layer: loralib.Linear | loralib.SVDLinear, start: str) -> None:
    """Draw or compute the starting factors of ``layer``, which has those of its constructor.

    Args:
        layer: with an adapter; on the meta device nothing is done.
        start: ``gaussian``, as its class draws them (``svd``: standard deviation 0.02; ``frd``: as
            torch draws a Linear); ``orthogonal``.

    Raises:
        UserError: if ``start`` is unknown.
    """
    if start not in INITIALISATIONS:
        raise UserError(f"lora_init {start!r} is unknown; choose {', '.join(INITIALISATIONS)}.")
    if start == "gaussian" or layer.lora_A.is_meta:
        return
    _orthogonal(layer)


@torch.no_grad()
def _orthogonal(layer: loralib.Linear | loralib.SVDLinear) -> None:
    """Orthonormal rows of ``lora_A`` [r, in]; with ``svd``, columns of ``lora_B`` [out, r] too.

    They are the Q of a Gaussian matrix's QR decomposition, so the orthogonality penalty starts at
    zero instead of at the distance of small random vectors from unit ones, which short runs spend
    most of their steps on.
    """
    nn.init.orthogonal_(layer.lora_A)
    if isinstance(layer, loralib.SVDLinear):
        nn.init.orthogonal_(layer.lora_B)

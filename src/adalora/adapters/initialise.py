"""Where the factors of LoRA layers start, if not where the original draws them.

Each function works on one layer in place, and the layer computes what its base does afterwards.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import nn

from adalora.errors import UserError
from loralib.base import LinearAdapter

Initialisation = Literal["gaussian", "lora", "orthogonal", "pissa"]
INITIALISATIONS = get_args(Initialisation)


def initialise(layer: LinearAdapter, start: str, *, path: str = "") -> None:
    """Draw or compute the starting factors of ``layer``, which has those of its constructor.

    Args:
        layer: with an adapter; on the meta device only the request is checked.
        start: ``gaussian``, as its class draws them (``svd``: standard deviation 0.02; ``frd``: as
            torch draws a Linear); ``lora``; ``orthogonal``; ``pissa``.
        path: of the layer, for messages.

    Raises:
        UserError: if ``start`` is unknown or cannot be had in this layer.
    """
    if start not in INITIALISATIONS:
        raise UserError(f"lora_init {start!r} is unknown; choose {', '.join(INITIALISATIONS)}.")
    if start == "pissa":
        _check_principal(layer, path)
    if start == "gaussian" or layer.lora_A.is_meta:
        return
    {"lora": _like_lora, "orthogonal": _orthogonal, "pissa": _principal}[start](layer)


@torch.no_grad()
def _like_lora(layer: LinearAdapter) -> None:
    """``lora_A`` as torch draws a Linear, ``lora_E`` at one, ``lora_B`` at zero.

    That is the start of plain LoRA, which ``frd`` has anyway, and the update starts at zero by
    ``lora_B`` instead of ``lora_E``. As published, a triplet starts between two random directions
    and one number has to grow before they turn; here the whole of ``lora_B`` follows the gradient
    from the first step on.
    """
    if layer.ZERO_FACTOR != "lora_B":
        nn.init.kaiming_uniform_(layer.lora_A, a=math.sqrt(5))
        nn.init.ones_(layer.factors()[layer.ZERO_FACTOR])
        nn.init.zeros_(layer.lora_B)


@torch.no_grad()
def _orthogonal(layer: LinearAdapter) -> None:
    """Orthonormal rows of ``lora_A`` [r, in]; with ``svd``, columns of ``lora_B`` [out, r] too.

    They are the Q of a Gaussian matrix's QR decomposition, so the orthogonality penalty starts at
    zero instead of at the distance of small random vectors from unit ones, which short runs spend
    most of their steps on. The update starts at zero as ever, by ``lora_E`` or ``lora_B``.
    """
    nn.init.orthogonal_(layer.lora_A)
    if layer.ZERO_FACTOR != "lora_B":
        nn.init.orthogonal_(layer.lora_B)


def _check_principal(layer: LinearAdapter, path: str) -> None:
    if layer.scaling <= 0:
        raise UserError(f"lora_init pissa divides by lora_alpha, and it is {layer.lora_alpha:g}.")
    largest = min(layer.in_features, layer.out_features)
    if 2 * layer.r > largest:
        raise UserError(
            f"lora_init pissa leaves an update of twice the rank, and 2 x {layer.r} is above the "
            f"largest rank of {path}, which is {largest}; lower lora_r."
        )


@torch.no_grad()
def _principal(layer: LinearAdapter) -> None:
    """PiSSA (arXiv 2404.02948, eq. 2-4): the factors hold the largest ``r`` singular triplets.

    W = U S Vᵀ. ``frd``: A = √S Vᵀ and B = U √S, the scale taken out of both halves alike. ``svd``:
    P = U, Λ = S over the scale, Q = Vᵀ, so P and Q are orthonormal. The residual W - U S Vᵀ is kept
    as the base with a frozen copy of these factors (``LinearAdapter.anchor``).
    """
    left, values, right = torch.linalg.svd(layer.base_weight().float(), full_matrices=False)
    rank = layer.r
    layer.set_product(left[:, :rank], values[:rank] / layer.scale, right[:rank])
    layer.anchor()

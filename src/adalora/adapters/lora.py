"""Putting LoRA layers of a kind (``adalora.adapters.kinds``) in the place of linear ones.

Wherever its factors start, a layer computes at first what its base does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import torch
from torch import nn

import loralib
from adalora.adapters.kinds import LORA_KINDS
from adalora.adapters.targets import find_targets
from adalora.errors import UserError
from loralib.base import LinearAdapter

Initialisation = Literal["gaussian", "lora", "orthogonal", "pissa"]
INITIALISATIONS = get_args(Initialisation)


def add_lora(
    model: nn.Module,
    *,
    lora_type: str,
    targets: Sequence[str],
    init_rank: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    lora_init: Initialisation = "gaussian",
) -> list[str]:
    """Replace linear layers by adapted ones that share their weights; nothing is copied.

    The adapters are drawn from torch's global generator (``torch.manual_seed`` decides them), in
    the model's order. The model computes what it did before: the update starts at zero.

    Args:
        model: a loaded model without LoRA layers.
        lora_type: of ``LORA_KINDS``: ``frd`` (W + BA, plain LoRA), ``svd`` (W + PΛQ, AdaLoRA
            §3.1), ``dora``.
        targets: names, as in ``find_targets``.
        init_rank: triplets per matrix, at least 1.
        lora_alpha: scale numerator; the scale is ``lora_alpha / init_rank``.
        lora_dropout: dropout probability on the adapters' input, in [0, 1).
        lora_init: where the factors start (``initialise``).

    Returns:
        Paths of the adapted modules, in model order.

    Raises:
        UserError: if a value is out of its range, a name matches nothing, the rank is above a
            matrix's smaller side, or the model already has LoRA layers.
    """
    if lora_type not in LORA_KINDS:
        raise UserError(f"lora_type {lora_type!r} is unknown; choose {', '.join(LORA_KINDS)}.")
    if init_rank < 1:
        raise UserError(f"The initial rank (lora_r) must be at least 1, and is {init_rank}.")
    if not 0 <= lora_dropout < 1:
        raise UserError(f"lora_dropout must be at least 0 and below 1, and is {lora_dropout}.")
    adapted = [
        path for path, module in model.named_modules() if isinstance(module, loralib.LoRALayer)
    ]
    if adapted:
        raise UserError(
            f"The model already has {len(adapted)} LoRA layers, the first at {adapted[0]}; load "
            "the base model again to adapt it differently."
        )
    found = find_targets(model, targets)
    for path, module in found.items():
        linear = cast(nn.Linear, module)
        largest = min(linear.in_features, linear.out_features)
        if init_rank > largest:
            raise UserError(
                f"lora_r {init_rank} is above the largest rank of {path}, which is {largest} "
                f"({linear.out_features} x {linear.in_features}); lower it."
            )
    layer_class = LORA_KINDS[lora_type].layer
    for path, module in found.items():
        layer = layer_class.from_linear(
            cast(nn.Linear, module), r=init_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout
        )
        initialise(layer, lora_init, path=path)
        replace_module(model, path, layer)
    return list(found)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at ``path``, in the training or evaluation mode of what was there."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    module.train(parent.get_submodule(name).training)
    setattr(parent, name, module)


def initialise(layer: LinearAdapter, start: str, *, path: str = "") -> None:
    """Draw or compute the starting factors of ``layer``, which has those of its constructor.

    Args:
        layer: with an adapter, at ``path``; on the meta device only the request is checked.
        start: ``gaussian``, as its class draws them (``svd``: standard deviation 0.02; ``frd``: as
            torch draws a Linear); ``lora``; ``orthogonal``; ``pissa``.

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

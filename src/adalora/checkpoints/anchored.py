"""How an update measured from its start (PiSSA) is stored: as a plain one of twice the rank.

    s (B A - B0 A0) = s [B, -B0] [A; A0]          s (P Λ Q - P0 Λ0 Q0) likewise

So an artefact fits the original base like any other, and is loaded, merged and exported without
knowing of PiSSA.
"""

from __future__ import annotations

import torch
from torch import Tensor

import loralib
from adalora.adapters.initialise import update_scale

__all__ = ["stored_alpha", "with_anchor"]


def stored_alpha(layer: loralib.Linear | loralib.SVDLinear) -> float:
    """The ``lora_alpha`` that gives twice the rank the scale of ``layer``."""
    scale = update_scale(layer)
    if isinstance(layer, loralib.SVDLinear):
        return scale * (2 * float(layer.ranknum) + 1e-5)
    return scale * 2 * layer.r


@torch.no_grad()
def with_anchor(
    layer: loralib.Linear | loralib.SVDLinear, factors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """``factors`` of an anchored layer, followed by those that are taken off.

    Args:
        layer: anchored.
        factors: ``lora_A`` [k, in], ``lora_B`` [out, k] and with ``svd`` ``lora_E`` [k, 1].

    Returns:
        Likewise, of k + r triplets.
    """
    down, up = layer.lora_anchor_A / update_scale(layer), layer.lora_anchor_B
    stored = {"lora_A": torch.cat([factors["lora_A"], down])}
    if "lora_E" in factors:
        ones = factors["lora_E"].new_ones(len(down), 1)
        stored["lora_E"] = torch.cat([factors["lora_E"], -ones])
        stored["lora_B"] = torch.cat([factors["lora_B"], up], dim=1)
    else:
        stored["lora_B"] = torch.cat([factors["lora_B"], -up], dim=1)
    return stored

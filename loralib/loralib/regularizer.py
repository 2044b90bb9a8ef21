"""The orthogonality penalty of the singular vectors, and its form for plain LoRA."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from .layers import Linear
from .svd import require_svd_layers


def compute_orth_regu(model: nn.Module, regu_weight: float = 0.1) -> Tensor:
    """Weighted mean distance of the singular-vector factors from orthonormality.

    AdaLoRA (arXiv 2303.10512) eq. 4: ‖PᵀP − I‖ and ‖QQᵀ − I‖, Frobenius. Departure from the paper,
    as in the published code: the norms are not squared, and averaged over all factors.

    Args:
        model: holds SVDLinear layers; P is ``lora_B`` [out, r], Q is ``lora_A`` [r, in].
        regu_weight: factor of the mean.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: if the model has no SVDLinear with an adapter.
    """
    layers = require_svd_layers(model, "compute_orth_regu").values()
    grams: dict[tuple[int, torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for layer in layers:
        for gram in (layer.lora_A @ layer.lora_A.T, layer.lora_B.T @ layer.lora_B):
            grams[len(gram), gram.dtype, gram.device].append(gram)
    norms = []
    for (rank, _, device), group in grams.items():
        stacked = torch.stack(group)
        stacked = stacked.to(torch.promote_types(stacked.dtype, torch.float32))
        identity = torch.eye(rank, dtype=stacked.dtype, device=device)
        norms.append(torch.linalg.matrix_norm(stacked - identity))
    return regu_weight * torch.cat(norms).mean()


def compute_frd_orth_regu(model: nn.Module, regu_weight: float = 0.1) -> Tensor:
    """The penalty's form for plain LoRA: mean absolute cosine between different triplets.

    Source: QingruZhang/AdaLoRA, NLU/src/transformers/trainer.py (``compute_frd_orth_regu``). Rows
    of ``lora_A`` [r, in] and columns of ``lora_B`` [out, r] are compared pairwise. Departure: a
    matrix of rank 1 has no pairs and counts as 0, where the original divided by zero.

    Raises:
        ValueError: if the model has no Linear with an adapter.
    """
    factors = [
        factor
        for layer in model.modules()
        if isinstance(layer, Linear) and layer.has_adapter
        for factor in (layer.lora_A, layer.lora_B.T)
    ]
    if not factors:
        raise ValueError("compute_frd_orth_regu needs at least one loralib.Linear with r > 0")
    coherence = []
    for rows in factors:
        rank = len(rows)
        # The norm of a zero vector (lora_B at the start) has no gradient of its own.
        length = (rows.square().sum(dim=1) + 1e-30).sqrt()
        cosine = (rows @ rows.T).abs() / (length.outer(length) + 1e-30)
        pairs = max(rank * rank - rank, 1)
        coherence.append((cosine.sum() - cosine.trace()) / pairs)
    return regu_weight * torch.stack(coherence).mean()

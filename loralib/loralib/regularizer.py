"""The orthogonality penalty of the singular vectors, and its form for plain LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Linear
from .ranked import Stacks, require_svd_layers
from .svd import SVDLinear


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
    return regu_weight * orthogonality(list(layers))


def orthogonality(layers: Sequence[SVDLinear]) -> Tensor:
    """Mean distance of the factors of these layers from orthonormality: scalar, at least float32.

    Matrices of one shape are handled together, forward and backward.
    """
    left = [layer.lora_B for layer in layers]
    right = [layer.lora_A for layer in layers]
    # Near orthonormality QQᵀ − I is a small difference, which a product in half precision loses.
    with torch.autocast(left[0].device.type, enabled=False):
        result: Tensor = _Orthogonality.apply(len(left), *left, *right)
    return result


class _Orthogonality(torch.autograd.Function):
    """The gradient of ‖QQᵀ − I‖ is 2 (QQᵀ − I) Q / ‖QQᵀ − I‖, and zero where the norm is."""

    @staticmethod
    def forward(ctx: Any, count: int, *factors: Tensor) -> Tensor:
        # Q as rows; P as columns, which the product over its first dimension takes as they are.
        parts = (factors[:count], factors[count:])
        ctx.stacks, saved, norms = [Stacks(members) for members in parts], [], []
        for side, (stacks, members) in enumerate(zip(ctx.stacks, parts, strict=True)):
            for stacked in stacks.stack(members):
                across = stacked.transpose(1, 2)
                gram = torch.bmm(stacked, across) if side else torch.bmm(across, stacked)
                gram = gram.to(torch.promote_types(gram.dtype, torch.float32))
                gram.diagonal(dim1=1, dim2=2).sub_(1)
                norm = torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True)
                norms.append(norm)
                saved += [stacked, gram, norm]
        ctx.save_for_backward(*saved)
        return torch.cat(norms).mean()

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        factor = gradient * (2 / sum(stacks.count for stacks in ctx.stacks))
        gradients: list[Tensor] = []
        for side, stacks in enumerate(ctx.stacks):
            parts = []
            for _ in stacks.members:
                stacked, difference, norm = next(saved), next(saved), next(saved)
                # Far below what rounding leaves of a norm, and no gradient scaler's factor over it
                # is infinite: where the norm is zero, so is the gradient.
                smallest = torch.finfo(norm.dtype).eps ** 2
                direction = (difference * (factor / norm.clamp(min=smallest))).to(stacked.dtype)
                pair = (direction, stacked) if side else (stacked, direction)
                parts.append(torch.bmm(*pair))
            gradients += stacks.views(parts)
        return None, *gradients


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
        with torch.autocast(rows.device.type, enabled=False):
            products = rows @ rows.T
        cosine = products.abs() / (length.outer(length) + 1e-30)
        pairs = max(rank * rank - rank, 1)
        coherence.append((cosine.sum() - cosine.trace()) / pairs)
    return regu_weight * torch.stack(coherence).mean()

"""The original's TensorBoard records: ranks, budget, and distance from orthonormality.

Tags as in QingruZhang/AdaLoRA, ``loralib/adalora.py``. Writing them waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .ranked import RankedLayer


def write_allocation(
    writer: Any,
    step: int,
    layers: Mapping[str, RankedLayer],
    rank_pattern: Mapping[str, int],
    threshold: Tensor,
) -> None:
    """Ranks, their sum, their parameters, and the score [] at which the budget ended.

    ``layers`` are by module path, and ``rank_pattern`` is ``<module>.lora_E`` -> triplets kept.
    """
    for name, rank in rank_pattern.items():
        writer.add_scalar(f"Ranknum/{name}", rank, step)
    kept = sum(
        rank_pattern[f"{path}.lora_E"] * (layer.in_features + layer.out_features)
        for path, layer in layers.items()
    )
    writer.add_scalar("Budget/total_rank", sum(rank_pattern.values()), step)
    writer.add_scalar("Budget/mask_threshold", float(threshold), step)
    writer.add_scalar("Budget/sum_param", kept, step)


@torch.no_grad()
def write_orthogonality(writer: Any, step: int, layers: Mapping[str, RankedLayer]) -> None:
    """Distance of every factor from orthonormality, and the mean of them."""
    distances = []
    for path, layer in layers.items():
        for name, rows in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B.T)):
            gram = (rows @ rows.T).float()
            distance = torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device))
            distances.append(float(distance))
            writer.add_scalar(f"Orth_regu_loss/{path}.{name}", distances[-1], step)
    writer.add_scalar("train/orth_regu_loss", sum(distances) / len(distances), step)

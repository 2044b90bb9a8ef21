"""LoRA and AdaLoRA layers, the rank allocator and the penalty; depends on torch alone.

A drop-in for the ``loralib`` of QingruZhang/AdaLoRA (arXiv 2303.10512), itself an extension of
microsoft/LoRA's.
"""

from __future__ import annotations

from .allocator import RankAllocator
from .dora import DoRALinear
from .importance import Importance
from .layers import Conv2d, Embedding, Linear, LoRALayer, MergedLinear
from .regularizer import compute_frd_orth_regu, compute_orth_regu, orthogonality
from .schedule import BudgetSchedule
from .state_dict import load_lora_state_dict, lora_state_dict, mark_only_lora_as_trainable
from .svd import SVDLinear
from .version import __version__

__all__ = [
    "BudgetSchedule",
    "Conv2d",
    "DoRALinear",
    "Embedding",
    "Importance",
    "Linear",
    "LoRALayer",
    "MergedLinear",
    "RankAllocator",
    "SVDLinear",
    "__version__",
    "compute_frd_orth_regu",
    "compute_orth_regu",
    "load_lora_state_dict",
    "lora_state_dict",
    "mark_only_lora_as_trainable",
    "orthogonality",
]

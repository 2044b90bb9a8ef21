"""LoRA and AdaLoRA layers, the rank allocator and the penalty; depends on torch alone.

A drop-in for the ``loralib`` of QingruZhang/AdaLoRA (arXiv 2303.10512), itself an extension of
microsoft/LoRA's.
"""

from __future__ import annotations

from .allocator import RankAllocator
from .base import LoRALayer
from .dora import DoRALinear
from .importance import SCORES, Importance, Magnitude
from .layers import Conv2d, Embedding, Linear, MergedLinear
from .regularizer import compute_frd_orth_regu, compute_orth_regu, orthogonality
from .schedule import BudgetSchedule, ExchangeSchedule, GrowthSchedule, make_schedule
from .selection import ALLOCATIONS
from .state_dict import load_lora_state_dict, lora_state_dict, mark_only_lora_as_trainable
from .svd import SVDLinear

__version__ = "1.0.0"

__all__ = [
    "ALLOCATIONS",
    "SCORES",
    "BudgetSchedule",
    "Conv2d",
    "DoRALinear",
    "Embedding",
    "ExchangeSchedule",
    "GrowthSchedule",
    "Importance",
    "Linear",
    "LoRALayer",
    "Magnitude",
    "MergedLinear",
    "RankAllocator",
    "SVDLinear",
    "__version__",
    "compute_frd_orth_regu",
    "compute_orth_regu",
    "load_lora_state_dict",
    "lora_state_dict",
    "make_schedule",
    "mark_only_lora_as_trainable",
    "orthogonality",
]

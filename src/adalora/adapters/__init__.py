"""Putting trainable parts on a loaded model: LoRA and AdaLoRA layers, bottleneck adapters, BitFit.

Everything works in place on a model that is already loaded (layers made inside a model's own
constructor come back uninitialised from ``from_pretrained``), and nothing here knows of tasks or
of a Trainer.
"""

from adalora.adapters.bottleneck import Bottleneck, add_bottleneck
from adalora.adapters.freeze import ParameterCounts, count_parameters, freeze_base
from adalora.adapters.head import head_names
from adalora.adapters.lora import add_lora
from adalora.adapters.targets import find_targets

__all__ = [
    "Bottleneck",
    "ParameterCounts",
    "add_bottleneck",
    "add_lora",
    "count_parameters",
    "find_targets",
    "freeze_base",
    "head_names",
]

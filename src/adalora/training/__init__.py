"""One training run: its arguments, the method over a model, the Trainer, checkpoints and results.

The names here are for training loops of your own (``docs/loops.md``).
"""

from __future__ import annotations

from adalora.runtime.launch import leave_job
from adalora.training.adaptation import AdaLora
from adalora.training.arguments.training import AdaLoraTrainingArguments
from adalora.training.callbacks import AdaLoraCallback
from adalora.training.protocol import AdaLoraSettings
from adalora.training.trainer import AdaLoraTrainer

__all__ = [
    "AdaLora",
    "AdaLoraCallback",
    "AdaLoraSettings",
    "AdaLoraTrainer",
    "AdaLoraTrainingArguments",
    "leave_job",
]

"""How many optimizer steps a run takes, known before the Trainer is built."""

from __future__ import annotations

import math

from adalora.training.arguments import AdaLoraTrainingArguments

__all__ = ["count_steps"]


def count_steps(examples: int, training: AdaLoraTrainingArguments) -> int:
    """Optimizer steps over ``examples`` training examples, as the installed Trainer counts them.

    Each process takes its share of the batches; ``gradient_accumulation_steps`` batches make a
    step and a shorter group at the end of an epoch makes one too; ``--max_steps`` overrides.
    """
    if training.max_steps > 0:
        return training.max_steps
    per_process = training.train_batch_size
    batches = examples / per_process
    whole = math.floor if training.dataloader_drop_last else math.ceil
    batches = whole(whole(batches) / max(training.world_size, 1))
    per_epoch = max(math.ceil(batches / training.gradient_accumulation_steps), 1)
    return math.ceil(training.num_train_epochs * per_epoch)

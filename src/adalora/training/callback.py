"""AdaLoRA inside any Hugging Face Trainer, for those who cannot subclass it.

The Trainer calls ``on_optimizer_step`` after the optimizer's step with the (clipped, accumulated)
gradients still in place and the step's index not yet advanced, which is where the original's
trainer calls the allocator. A callback cannot reach the loss: with a stock Trainer add
``AdaLora.penalty()`` in ``compute_loss`` or use ``AdaLoraTrainer``.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adalora.training.adaptation import AdaLora
from adalora.training.peft_adalora import PeftAdaLora

__all__ = ["AdaLoraCallback", "LogLastStep"]


class AdaLoraCallback(TrainerCallback):  # type: ignore[misc]
    """Calls an ``AdaLora`` at the right moments of a Trainer's life."""

    def __init__(self, adaptation: AdaLora | PeftAdaLora) -> None:
        self.adaptation = adaptation

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Fix the schedule from the real number of optimizer steps of the run."""
        if self.adaptation.allocator is None:
            self.adaptation.begin(state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Update importance and prune, once per optimizer step."""
        self.adaptation.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run whose allocator never did its work does not end silently."""
        self.adaptation.finish()


class LogLastStep(TrainerCallback):  # type: ignore[misc]
    """Logs the last step whatever ``logging_steps`` is.

    The installed Trainer averages the loss over the processes when it logs, and adds what it has
    not logged from the main process alone, so that ``train_loss`` would depend on their number.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a record at the end of the run."""
        if state.global_step >= state.max_steps:
            control.should_log = True

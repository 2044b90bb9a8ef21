"""The installed Hugging Face Trainer, with AdaLoRA in its training step.

What it adds: the penalty in the training loss only, the allocator after each optimizer step, a
right loss scale under accumulation and several processes, the method's numbers in the logs, and
checkpoints that hold the trained parameters and the allocator's state instead of the whole model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import transformers
from torch import Tensor, nn

from adalora.checkpoints import load_trainable, save_trainable
from adalora.errors import UserError
from adalora.training.adaptation import AdaLora
from adalora.training.allocator_state import load_state, save_state
from adalora.training.callback import AdaLoraCallback, LogLastStep
from adalora.training.consistency import consistency_loss, mask_tokens

__all__ = ["AdaLoraTrainer"]

TRAINABLE_FILE = "trainable.safetensors"
ALLOCATOR_FILE = "allocator.safetensors"


class AdaLoraTrainer(transformers.Trainer):  # type: ignore[misc]
    """A Trainer for adapted models.

    Args:
        adaptation: the method over ``model``; None trains whatever requires a gradient, which is
            how plain fine-tuning, BitFit and bottleneck adapters use the same Trainer.
        reg_loss_wgt: weight of the consistency loss (``adalora.training.consistency``), 0 for none.
        masking_prob: token masking probability of its second pass.
        **kwargs: those of ``transformers.Trainer``.
    """

    # compute_loss returns the mean over one micro-batch. The installed Trainer would otherwise
    # believe that a model whose forward takes **kwargs divides its loss by the items of the whole
    # accumulated batch; DeBERTa's, BERT's and the others' do not (measured: twice the gradient at
    # two accumulation steps, twice again with two processes).
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        adaptation: AdaLora | None = None,
        reg_loss_wgt: float = 0.0,
        masking_prob: float = 0.0,
        **kwargs: Any,
    ) -> None:
        model = kwargs.get("model", args[0] if args else None)
        if not isinstance(model, nn.Module):
            raise UserError("AdaLoraTrainer needs `model`, an adapted model.")
        # The releases before `loss_is_scaled_for_ga` read this attribute of the model instead.
        model.accepts_loss_kwargs = False  # type: ignore[assignment]
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.adaptation = adaptation
        self.reg_loss_wgt = reg_loss_wgt
        self.masking_prob = masking_prob
        self._task_loss: Tensor | None = None
        self._penalty_sum: Tensor | None = None
        self._penalty_count = 0
        self.add_callback(LogLastStep())
        if adaptation is not None:
            self.add_callback(AdaLoraCallback(adaptation))

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Task loss, and in training the penalty on top; evaluation sees the task loss alone."""
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        if self.reg_loss_wgt > 0:
            loss = self._consistency_loss(model, inputs)
        else:
            loss = cast(Tensor, super().compute_loss(model, inputs))
        self._task_loss = loss.detach()
        if self.adaptation is None or self.adaptation.settings.orth_reg_weight == 0:
            return loss
        penalty = self.adaptation.penalty()
        self._penalty_sum = (
            penalty.detach() if self._penalty_sum is None else self._penalty_sum + penalty.detach()
        )
        self._penalty_count += 1
        return loss + penalty.to(loss.device)

    def _consistency_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        tokenizer: Any = self.processing_class
        masked = mask_tokens(
            inputs["input_ids"],
            probability=self.masking_prob,
            unknown_id=tokenizer.unk_token_id,
            special_ids=list(tokenizer.all_special_ids),
        )
        return consistency_loss(model, inputs, masked, self.reg_loss_wgt)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """One forward and backward pass; what is returned and logged is the task loss alone."""
        total = super().training_step(model, inputs, num_items_in_batch)
        if self._penalty_count == 0 or self._task_loss is None:
            return total
        return self._task_loss.mean() / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the method's numbers to the Trainer's; the only place that waits for the device."""
        if "loss" in logs and self.adaptation is not None:
            if self._penalty_sum is not None:
                logs["orth_penalty"] = self._penalty_sum.item() / self._penalty_count
                self._penalty_sum, self._penalty_count = None, 0
            if self.adaptation.budget is not None:
                logs["budget"] = self.adaptation.budget
            if self.adaptation.threshold is not None:
                logs["mask_threshold"] = float(self.adaptation.threshold)
        super().log(logs, *args, **kwargs)

    # ---- checkpoints: trained parameters and the allocator ----

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the trained parameters, not the frozen base."""
        folder = Path(output_dir or str(self.args.output_dir))
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_trainable(self.accelerator.unwrap_model(self.model), folder / TRAINABLE_FILE)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.adaptation is None or self.adaptation.allocator is None:
            return
        if self.args.should_save:
            save_state(self.adaptation.state_dict(), Path(output_dir) / ALLOCATOR_FILE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        load_trainable(
            self.accelerator.unwrap_model(model or self.model),
            Path(resume_from_checkpoint) / TRAINABLE_FILE,
        )

    def _load_best_model(self) -> None:
        folder = self.state.best_model_checkpoint
        load_trainable(
            self.accelerator.unwrap_model(self.model), Path(str(folder)) / TRAINABLE_FILE
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.adaptation is None:
            return
        # The total number of steps is known by now, and the allocator's state needs its schedule.
        self.adaptation.begin(self.state.max_steps)
        if self.adaptation.allocator is not None:
            self.adaptation.load_state_dict(load_state(Path(checkpoint) / ALLOCATOR_FILE))

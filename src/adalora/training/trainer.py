"""The installed Hugging Face Trainer, with AdaLoRA in its training step.

What it adds: the penalty in the training loss only, the allocator after each optimizer step, a
right loss scale under accumulation and several processes, and the method's numbers in the logs. Its
checkpoints are those of ``resumable.py``.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from adalora.errors import UserError
from adalora.training.adaptation import AdaLora
from adalora.training.callback import AdaLoraCallback, LogLastStep
from adalora.training.consistency import consistency_loss, mask_tokens
from adalora.training.faults import batch_in_memory
from adalora.training.resumable import ResumableTrainer

__all__ = ["AdaLoraTrainer"]


class AdaLoraTrainer(ResumableTrainer):
    """A Trainer for adapted models.

    Args:
        adaptation: the method over ``model``; None trains whatever requires a gradient, which is
            how plain fine-tuning, BitFit and bottleneck adapters use the same Trainer.
        reg_loss_wgt: weight of the consistency loss (``adalora.training.consistency``), 0 for none.
        masking_prob: token masking probability of its second pass.
        **kwargs: those of ``ResumableTrainer`` and ``transformers.Trainer``.
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
        super().__init__(*args, adaptation=adaptation, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.reg_loss_wgt = reg_loss_wgt
        self.masking_prob = masking_prob
        self._task_loss: Tensor | None = None
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
        self.penalty.add(penalty)
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
        with batch_in_memory(inputs, training=True):
            total = super().training_step(model, inputs, num_items_in_batch)
        if self.penalty.count == 0 or self._task_loss is None:
            return total
        return self._task_loss.mean() / self.current_gradient_accumulation_steps

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        """One forward pass without gradients."""
        with batch_in_memory(inputs, training=False):
            return super().prediction_step(model, inputs, *args, **kw)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the gradients, None where the step is left out because it is not finite.

        A gradient scaler leaves such steps out itself.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.accelerator.scaler is not None:
            return norm
        step = self.state.global_step + 1
        return None if self.bad_steps.leave_out(norm, model.parameters(), step=step) else norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the method's numbers to the Trainer's; the only place that waits for the device."""
        if "loss" in logs:
            self.bad_steps.note_in(logs)
        if "loss" in logs and self.adaptation is not None:
            penalty = self.penalty.take()
            if penalty is not None:
                logs["orth_penalty"] = penalty
            if self.adaptation.budget is not None:
                logs["budget"] = self.adaptation.budget
            if self.adaptation.threshold is not None:
                logs["mask_threshold"] = float(self.adaptation.threshold)
        if "train_loss" in logs:
            # Of the whole run; the Trainer's own is of the steps since it was resumed.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)

    def _course(self) -> dict[str, Any]:
        """What decides the course of this run: the consistency loss too."""
        own = {"reg_loss_wgt": self.reg_loss_wgt, "masking_prob": self.masking_prob}
        return super()._course() | own

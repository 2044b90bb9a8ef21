"""The installed Hugging Face Trainer, with AdaLoRA in its training step.

What it adds: the penalty in the training loss only, the allocator after each optimizer step, a
right loss scale under accumulation and several processes, the best model among those at the final
budget, and the method's numbers in the logs. Its checkpoints are those of ``resumable.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers.trainer_pt_utils import LengthGroupedSampler, find_batch_size
from transformers.trainer_utils import has_length

from adalora.artefact.base_encoder import BaseEncoder
from adalora.errors import UserError
from adalora.runtime.failures import batch_in_memory
from adalora.runtime.launch import check_job
from adalora.runtime.sharding import replicate_trained, shard_base
from adalora.training.batches import GroupedByLength, Share, first_rows, share_of
from adalora.training.callbacks import (
    AdaLoraCallback,
    LearningRateByStep,
    LogLastStep,
    StopEarly,
    refuse_data_parallel,
)
from adalora.training.checkpointing.resumable import ResumableTrainer
from adalora.training.losses import StepExamples, consistency_loss, mask_tokens
from adalora.training.optimizer import raise_learning_rate
from adalora.training.protocol import Adaptation


class AdaLoraTrainer(ResumableTrainer):
    """A Trainer for adapted models.

    Args:
        adaptation: the method over ``model``; None trains whatever requires a gradient, which is
            how plain fine-tuning, BitFit and bottleneck adapters use the same Trainer.
        reg_loss_wgt: weight of the consistency loss (``adalora.training.losses``), 0 for none.
        masking_prob: token masking probability of its second pass.
        lora_plus_ratio: learning rate of the factor that starts at zero over that of the others
            (``adalora.training.optimizer``).
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
        adaptation: Adaptation | None = None,
        reg_loss_wgt: float = 0.0,
        masking_prob: float = 0.0,
        lora_plus_ratio: float = 1.0,
        **kwargs: Any,
    ) -> None:
        model = kwargs.get("model", args[0] if args else None)
        if not isinstance(model, nn.Module):
            raise UserError("AdaLoraTrainer needs `model`, an adapted model.")
        # The releases before `loss_is_scaled_for_ga` read this attribute of the model instead.
        model.accepts_loss_kwargs = False  # type: ignore[assignment]
        super().__init__(*args, adaptation=adaptation, **kwargs)
        check_job(os.environ, self.args.distributed_state)
        refuse_data_parallel(self.args)
        self.model_accepts_loss_kwargs = False
        self.reg_loss_wgt, self.masking_prob = reg_loss_wgt, masking_prob
        self.lora_plus_ratio = lora_plus_ratio
        self._task_loss: Tensor | None = None
        if adaptation is not None and adaptation.needs_model_loss and self.label_smoother:
            raise UserError(
                "PEFT's AdaLoRA adds its penalty to the loss that the model computes, and with "
                "--label_smoothing_factor the model computes none; leave that out."
            )
        self.base_fingerprint: str | None = None
        if getattr(self.args, "shard_base", False):
            self._shard_base()
        self.add_callback(LogLastStep())
        self.add_callback(LearningRateByStep())
        if patience := getattr(self.args, "early_stopping_patience", None):
            self.add_callback(StopEarly(patience))
        if adaptation is not None:
            self.add_callback(AdaLoraCallback(adaptation))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's, with LoRA+'s groups."""
        given = self.optimizer is not None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.lora_plus_ratio != 1 and not given:
            trained = cast(nn.Module, self.model if model is None else model)
            raise_learning_rate(optimizer, trained, self.lora_plus_ratio)
        return optimizer

    # ---- a sharded base ----

    def _shard_base(self) -> None:
        model = cast(nn.Module, self.model)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        if self.args.should_save:
            # For the artefact: no process will see the base whole again.
            self.base_fingerprint = BaseEncoder.of(model).fingerprint(without=trained)
        shard_base(model, self.args.device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> Any:
        """DistributedDataParallel over a sharded base, which accelerate would refuse to wrap."""
        wrapped = super()._wrap_model(model, training, dataloader)
        sharded = training and getattr(self.args, "shard_base", False)
        if not sharded or wrapped is not self.model:
            return wrapped
        prepared = self.accelerator.prepare_model(wrapped, evaluation_mode=True)
        options = self.accelerator.ddp_handler.to_kwargs() if self.accelerator.ddp_handler else {}
        return replicate_trained(prepared, self.args.device, **options)

    # ---- batches ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        size = sampler.batch_size * self.args.world_size
        return GroupedByLength(size, seed=seed, lengths=sampler.lengths)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """The order of the data: a prediction is identified by its position.

        The installed Trainer lets --train_sampling_strategy group evaluation and prediction by
        length too, and hands the predictions out in that order. (What is shared out among
        processes comes back in the order of the data.)
        """
        if eval_dataset is None or not has_length(eval_dataset):
            return super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(eval_dataset)

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """The installed one's, where --dataloader_drop_last is of training alone.

        Of an evaluation it would leave out examples, and of a prediction answers.
        """
        drops = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drops and kwargs.get("is_training", False)
        try:
            return super()._get_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = drops

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """The batches of one step, and its ``StepExamples``, which ``compute_loss`` is given.

        The last batch of an epoch may be smaller than those before it. Of one that the processes
        share, each keeps its own rows alone.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        sizes = [int(find_batch_size(batch) or 0) for batch in batches]
        totals = [size * self.args.world_size for size in sizes]
        share = None
        if batches and has_length(self.train_dataset) and not self.args.dataloader_drop_last:
            # accelerate's own count of what remains is wrong in an epoch that was resumed.
            share = self._share(batches[-1], len(cast(Any, self.train_dataset)))
        if share is not None:
            batches[-1] = first_rows(batches[-1], share.rows)
            sizes[-1], totals[-1] = share.rows, share.total
        # The installed Trainer hands this on as the number of items in the accumulated batch.
        return batches, StepExamples(tuple(sizes), sum(totals))

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """As the installed one, with the loss of this process's own rows where a batch is short."""
        with batch_in_memory(inputs, training=False):
            result = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        remainder = self.accelerator.gradient_state.remainder
        share = None if result[0] is None else self._share(inputs, max(remainder, 0))
        if share is None:
            return cast(tuple[Tensor | None, Any, Any], result)
        # In every process, short or not: they gather a sharded base together.
        own = super().prediction_step(model, first_rows(inputs, share.rows), True, ignore_keys)
        return own[0], *result[1:]

    def _share(self, batch: Mapping[str, Any], examples: int) -> Share | None:
        """This process's part of the batch that was loaded last; None if all of it.

        ``examples`` are those of the whole data set, or as many as remain for its last batches.
        """
        processes, size = self.args.world_size, int(find_batch_size(batch) or 0)
        total = examples % (size * processes) if size else 0
        if processes == 1 or not total or not self.accelerator.gradient_state.end_of_dataloader:
            return None
        return share_of(size, total=total, process=self.args.process_index, processes=processes)

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: StepExamples | Tensor | int | None = None,
    ) -> Any:
        """Task loss, and in training the penalty on top; evaluation sees the task loss alone.

        In training it is weighted so that the mean over micro-batches and processes is the mean
        over the examples of the step.
        """
        if return_outputs or not model.training:
            if self.adaptation is not None:
                model = self.adaptation.task_model(model)
            return super().compute_loss(model, inputs, return_outputs=return_outputs)
        if self.reg_loss_wgt > 0:
            loss = self._consistency_loss(model, inputs)
        else:
            loss = cast(Tensor, super().compute_loss(model, inputs))
        if isinstance(num_items_in_batch, StepExamples):
            # The last micro-batch of a step is the one after which gradients are exchanged.
            last = self.accelerator.sync_gradients
            loss = loss * num_items_in_batch.weight(last=last, processes=self.args.world_size)
        self._task_loss = loss.detach()
        if self.adaptation is None:
            return loss
        losses = self.adaptation.losses(loss)
        self._task_loss = losses.task
        if losses.penalty is not None:
            self.penalty.add(losses.penalty)
        return losses.total

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
        # --auto_find_batch_size looks for the error as it is.
        searches = self.args.auto_find_batch_size
        with nullcontext() if searches else batch_in_memory(inputs, training=True):
            total = super().training_step(model, inputs, num_items_in_batch)
        if self.penalty.count == 0 or self._task_loss is None:
            return total
        return self._task_loss.mean() / self.current_gradient_accumulation_steps

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether these scores are the best so far, of a model at its final budget.

        One that still holds more triplets is none that the run was asked for, however good.
        """
        if self.adaptation is not None and not self.adaptation.at_target(self.state.global_step):
            return False
        try:
            return bool(super()._determine_best_metric(metrics=metrics, trial=trial))
        except KeyError as error:
            known = ", ".join(name.removeprefix("eval_") for name in metrics)
            raise UserError(
                f"--metric_for_best_model is {self.args.metric_for_best_model!r}, and an "
                f"evaluation gives {known}; choose one of them."
            ) from error

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
            if (penalty := self.penalty.take()) is not None:
                logs["orth_penalty"] = penalty
            if self.adaptation.budget is not None:
                logs["budget"] = self.adaptation.budget
            if self.adaptation.threshold is not None:
                logs["mask_threshold"] = float(self.adaptation.threshold)
        if "train_loss" in logs:
            # Of the whole run; the Trainer's own is of the steps since it was resumed.
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, *args, **kwargs)

    def _resume_settings(self) -> dict[str, Any]:
        """What decides the result of this run, with what only this Trainer knows."""
        own = ("reg_loss_wgt", "masking_prob", "lora_plus_ratio")
        return super()._resume_settings() | {name: getattr(self, name) for name in own}

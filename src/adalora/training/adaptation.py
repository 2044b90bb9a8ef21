"""AdaLoRA over one adapted model: the penalty, the allocator's step, and their state.

This is the whole method for any training loop (paper: algorithm 1; order as in the original's
trainer)::

    adaptation = AdaLora(model, AdaLoraSettings(target_rank=2, init_warmup=0.1, final_warmup=0.3))
    adaptation.begin(total_steps)
    adaptation.attach(optimizer)       # or after each optimizer.step(): adaptation.step(index)
    for batch in batches:
        (model(**batch).loss + adaptation.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
    adaptation.finish()

``AdaLoraSettings`` names its variants: other scores, other allocations, plain LoRA that is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adalora.errors import UserError
from adalora.training.allocation_history import AllocationHistory
from adalora.training.protocol import AdaLoraSettings, AllocationCounts, Losses
from loralib import Linear, RankAllocator, SVDLinear, compute_frd_orth_regu, orthogonality
from loralib.selection import make_rule

__all__ = ["AdaLora", "AdaLoraSettings"]

#: TensorBoard records of ranks and penalty over a run whose user asks for no number of steps.
RECORDS = 100


class AdaLora:
    """Penalty, allocation and state of one adapted model.

    Args:
        model: holds ``loralib.SVDLinear`` layers (or ``loralib.Linear`` with ``allocate=False`` or
            ``prune_lora=True``); an unwrapped model, not its DistributedDataParallel shell.
        settings: the method's numbers.
        writer: a TensorBoard ``SummaryWriter``; records carry the original's tags.
        log_interval: steps between two records; None for ``RECORDS`` of them over the run.
        process_group: as for ``loralib.RankAllocator``.

    Raises:
        UserError: if the model has no layer that the settings could act on.
    """

    needs_model_loss = False

    def __init__(
        self,
        model: nn.Module,
        settings: AdaLoraSettings,
        *,
        writer: Any = None,
        log_interval: int | None = None,
        process_group: Any = None,
    ) -> None:
        self.model, self.settings, self.process_group = model, settings, process_group
        self.writer, self.log_interval = writer, log_interval
        self.svd_layers = [m for m in model.modules() if isinstance(m, SVDLinear) and m.r > 0]
        self.frd_layers = [m for m in model.modules() if isinstance(m, Linear) and m.r > 0]
        self.allocator: RankAllocator | None = None
        self.begun = False
        self.budget: int | None = None
        self.threshold: Tensor | None = None
        self.history = AllocationHistory(0)
        self._attached: RemovableHandle | None = None
        if settings.allocate and not (self.frd_layers if settings.prune_lora else self.svd_layers):
            needs = "AdaLoRA prunes singular values and this model has no SVD layer"
            if settings.prune_lora:
                needs = "prune_lora prunes plain LoRA and this model has no such layer"
            raise UserError(
                f"{needs}; put them on with adalora.adapters.add_lora(model, "
                f'lora_type="{settings.lora_type}", ...) first.'
            )
        if not (self.svd_layers or self.frd_layers):
            raise UserError("This model has no LoRA layer; adalora.adapters.add_lora adds them.")
        self.init_rank = max((layer.r for layer in self.layers), default=0)
        self.total_rank = sum(layer.r for layer in self.layers)

    @property
    def layers(self) -> Sequence[SVDLinear | Linear]:
        """The layers that the method acts on."""
        if self.settings.prune_lora:
            return self.frd_layers
        return self.svd_layers or self.frd_layers

    def begin(self, total_steps: int) -> None:
        """Fix the length of the run, before its first step; called again it begins another run.

        Raises:
            UserError: if the schedule does not fit ``total_steps``.
        """
        settings = self.settings
        if not settings.allocate:
            return
        schedule = settings.schedule(self.total_rank, len(self.layers), total_steps)
        self.budget = self.threshold = None
        self.history = AllocationHistory(total_steps)
        self.allocator = RankAllocator.from_schedule(
            self.model,
            schedule,
            beta1=settings.beta1,
            beta2=settings.beta2,
            lora_type=settings.lora_type,
            importance_score=settings.importance_score,
            allocation=settings.allocation,
            process_group=self.process_group,
            tb_writter=self.writer,
            tb_writter_loginterval=self.log_interval or max(total_steps // RECORDS, 1),
        )
        self.begun = True

    def penalty(self) -> Tensor:
        """Weighted orthogonality penalty to add to the training loss: scalar, float32.

        Zero, without a graph, when the coefficient is zero.
        """
        weight = self.settings.orth_reg_weight
        if weight == 0:
            return torch.zeros((), device=self.layers[0].lora_A.device)
        if self.svd_layers:
            return weight * orthogonality(self.svd_layers)
        return compute_frd_orth_regu(self.model, regu_weight=weight)

    def task_model(self, model: nn.Module) -> nn.Module:
        """``model`` itself: the penalty is not in its loss."""
        return model

    def losses(self, loss: Tensor) -> Losses:
        """``loss`` with the penalty on top, unless its coefficient is zero."""
        task = loss.detach()
        if self.settings.orth_reg_weight == 0:
            return Losses(loss, task, None)
        penalty = self.penalty()
        return Losses(loss + penalty.to(loss.device), task, penalty)

    def attach(self, optimizer: Any) -> RemovableHandle:
        """Take in each step of ``optimizer`` by itself, in the place of calls of ``step``.

        What is counted are the steps that the optimizer makes: accumulated batches are none, nor
        is one that a gradient scaler leaves out (where a fused optimizer leaves it out inside its
        kernel, the schedule goes on and the importance stands still, as in ``AdaLoraTrainer``).

        Args:
            optimizer: a ``torch.optim.Optimizer`` over the adapters of the model, or what
                accelerate or Lightning made of one. An earlier one is let go.

        Returns:
            A handle, of which ``remove()`` ends it.

        Raises:
            UserError: if it is another optimizer.
        """
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(p) in stepped for layer in self.layers for p in layer.factors().values()):
            raise UserError(
                "AdaLora.attach was given an optimizer that has no adapter of this model; give the "
                "one that trains them, made after they were put on."
            )
        if self._attached is not None:
            self._attached.remove()
        self._attached = optimizer.register_step_post_hook(lambda *_: self._take_step())
        return self._attached

    def _take_step(self) -> None:
        self.step(0 if self.allocator is None else self.allocator.global_step + 1)

    def step(self, global_step: int) -> tuple[int | None, Tensor | None]:
        """Update importance and, when the schedule says so, allocate.

        Call it after ``optimizer.step()`` and before ``zero_grad()``, with the index of the step
        just made, from 0; or let ``attach`` do so.

        Returns:
            Budget in triplets, and the score at or below which triplets were pruned (scalar on
            the model's device; where ranks grow, of the first matrix to get no more), or None
            where nothing was chosen.

        Raises:
            UserError: if the index is not that of the next step.
        """
        if not self.settings.allocate:
            return None, None
        if self.allocator is None:
            raise UserError("AdaLora.step was called before AdaLora.begin(total_steps).")
        if global_step != (following := self.allocator.global_step + 1):
            raise UserError(
                f"AdaLora.step was given the index {global_step}, and the next step is {following}:"
                " every optimizer step is to be counted once, from 0. AdaLora.attach(optimizer) "
                "counts by itself, and step is not to be called beside it; a run that goes on "
                "from a checkpoint needs AdaLora.load_state_dict."
            )
        allocator, before = self.allocator, self.allocator.mask_events
        self.budget, threshold = allocator.update_and_mask(self.model, global_step)
        if threshold is not None:
            self.threshold = threshold
        if allocator.mask_events > before:
            self.history.note(global_step, self.budget, threshold, allocator.survivors())
        return self.budget, threshold

    def at_target(self, steps: int) -> bool:
        """Whether the budget is at its target for good, once ``steps`` steps were made.

        Where the final phase is too short for a step of that kind, the end of the run is one.
        """
        schedule = None if self.allocator is None else self.allocator.schedule
        if schedule is None:
            return True
        return steps > schedule.total_step - max(schedule.final_warmup - 1, 1)

    def rank_pattern(self) -> dict[str, int]:
        """Triplets kept per matrix, keyed ``<module>.lora_E``; those of the start before ``begin``.

        Plain LoRA that is not pruned has none. Where it is, the key is the same, and counts
        doublets.
        """
        if self.allocator is not None:
            return self.allocator.get_rank_pattern()
        ranked = self.frd_layers if self.settings.prune_lora else self.svd_layers
        if not ranked:
            return {}
        ranks, target = [layer.r for layer in ranked], self.settings.target(len(ranked))
        rule = make_rule(self.settings.allocation, ranks, torch.device("cpu"), budget=target)
        if (first := rule.first()) is not None:
            ranks = [int(part.sum()) for part in first.split(ranks)]
        paths = {module: path for path, module in self.model.named_modules()}
        names = [f"{paths[layer]}.lora_E" for layer in ranked]
        return dict(zip(names, ranks, strict=True))

    def counts(self) -> AllocationCounts | None:
        """What the allocator did so far, None before ``begin``; it waits for the device."""
        allocator = self.allocator
        if allocator is None:
            return None
        return AllocationCounts(
            steps_seen=allocator.steps_seen,
            updates_due=allocator.updates_due,
            skipped_steps=allocator.skipped_steps,
            mask_events=allocator.mask_events,
            target_total_rank=allocator.target_rank,
        )

    def count_triplets(self) -> int:
        """Triplets with a singular value other than zero; it waits for the device.

        More than the pattern's where the last step pruned nothing: pruned ones have grown again.
        """
        return sum(int(layer.lora_E.count_nonzero()) for layer in self.svd_layers)

    def importance(self) -> dict[str, list[float]]:
        """Module path -> score of each of its triplets now, in descending order."""
        if self.allocator is None:
            return {}
        ranks = {name: len(kept) for name, kept in self.allocator.survivors().items()}
        scores = self.allocator.importance.scores().split(list(ranks.values()))
        return {
            name.removesuffix(".lora_E"): sorted(part.tolist(), reverse=True)
            for name, part in zip(ranks, scores, strict=True)
        }

    def finish(self) -> None:
        """Check at the end of training that the allocator did its work.

        Raises:
            UserError: if it was never called, never saw a usable gradient, or was stopped before
                it reached its target.
        """
        if not self.settings.allocate:
            return
        allocator = self.allocator
        if allocator is None or allocator.steps_seen == 0:
            raise UserError(
                "AdaLoRA was asked for and its allocator was never called, so no rank changed: "
                "call AdaLora.attach(optimizer), or AdaLora.step after every optimizer.step()."
            )
        if allocator.skipped_steps == allocator.updates_due:
            raise UserError(
                f"The allocator saw no usable gradient in any of {allocator.steps_seen} steps: "
                "call AdaLora.step before zero_grad(), and look for a loss that is not finite."
            )
        schedule, made = allocator.schedule, allocator.global_step + 1
        kept = sum(allocator.get_rank_pattern().values())
        if schedule and made < schedule.total_step and kept != allocator.target_rank:
            raise UserError(
                f"Training stopped after {made} of {schedule.total_step} steps with {kept} "
                f"triplets, and its target is {allocator.target_rank}: make the steps that "
                "AdaLora.begin was told of, or tell it of those that are made."
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue exactly."""
        if self.allocator is None:
            return {}
        own = {"threshold": self.threshold, "history": self.history.state_dict()}
        return {**self.allocator.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any], *, reschedule: bool = False) -> None:
        """Continue from ``state``; call it after ``begin``.

        With ``reschedule`` it goes on by this run's schedule where that of ``state`` differs.

        Raises:
            UserError: if the state is of another model or another schedule.
        """
        if self.allocator is None or self.allocator.schedule is None:
            return
        if reschedule:
            betas = [self.allocator.beta1, self.allocator.beta2]
            state = {**state, "schedule": asdict(self.allocator.schedule), "betas": betas}
        try:
            self.allocator.load_state_dict(state)
            # Checkpoints of before it was kept have none.
            self.history.load_state_dict(state.get("history", {}))
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"The allocator's state does not fit this run: {error}") from error
        self.threshold = state.get("threshold")

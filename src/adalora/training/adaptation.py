"""AdaLoRA over one adapted model: the penalty, the allocator's step, and their state.

This is the whole method behind three calls, for any training loop (paper: algorithm 1; order as in
the original's trainer)::

    adaptation = AdaLora(model, AdaLoraSettings(target_rank=2, init_warmup=0.1, final_warmup=0.3))
    adaptation.begin(total_steps)
    for step, batch in enumerate(batches):
        (model(**batch).loss + adaptation.penalty()).backward()
        optimizer.step()
        adaptation.step(step)          # the gradients must still be there
        optimizer.zero_grad()
    adaptation.finish()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adalora.errors import UserError
from adalora.training.allocations import AllocationHistory
from loralib import (
    BudgetSchedule,
    Linear,
    RankAllocator,
    SVDLinear,
    compute_frd_orth_regu,
    orthogonality,
)

__all__ = ["AdaLora", "AdaLoraSettings"]


@dataclass(frozen=True)
class AdaLoraSettings:
    """The method's numbers, in the paper's terms.

    ``init_warmup`` and ``final_warmup`` are steps, or fractions of all steps when below 1.
    ``target_total_rank`` (triplets in the whole model) overrides ``target_rank`` (mean per matrix).
    With ``allocate=False`` the ranks stay fixed and only the penalty is active.
    """

    target_rank: int = 8
    target_total_rank: int | None = None
    init_warmup: float = 0.1
    final_warmup: float = 0.3
    mask_interval: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.1
    allocate: bool = True

    def steps(self, total_steps: int) -> tuple[int, int]:
        """(initial, final) warm-up in steps of a run of ``total_steps`` steps."""
        return (
            _as_steps(self.init_warmup, total_steps),
            _as_steps(self.final_warmup, total_steps),
        )

    def schedule(self, total_rank: int, matrices: int, total_steps: int) -> BudgetSchedule:
        """The budget over a run (paper §3.3 and appendix A).

        Args:
            total_rank: triplets in the model at the start.
            matrices: number of adapted matrices.
            total_steps: optimizer steps of the run.

        Raises:
            UserError: if the warm-ups leave no step to shrink the budget in, or the target is
                above the start.
        """
        init_warmup, final_warmup = self.steps(total_steps)
        target = self.target_total_rank
        if target is None:
            target = self.target_rank * matrices
        if init_warmup + final_warmup >= total_steps:
            raise UserError(
                f"The schedule leaves no decay phase: init_warmup {init_warmup} + final_warmup "
                f"{final_warmup} steps fill the {total_steps} steps of this run. Lower them, or "
                "give fractions of the run such as --init_warmup 0.1 --final_warmup 0.3."
            )
        try:
            return BudgetSchedule(
                total_rank=total_rank,
                target_total_rank=target,
                init_warmup=init_warmup,
                final_warmup=final_warmup,
                mask_interval=self.mask_interval,
                total_step=total_steps,
            )
        except ValueError as error:
            raise UserError(str(error)) from error


def _as_steps(value: float, total_steps: int) -> int:
    return round(value * total_steps) if 0 < value < 1 else int(value)


class AdaLora:
    """Penalty, allocation and state of one adapted model.

    Args:
        model: holds ``loralib.SVDLinear`` layers (or ``loralib.Linear`` with ``allocate=False``);
            an unwrapped model, not its DistributedDataParallel shell.
        settings: the method's numbers.
        writer: a TensorBoard ``SummaryWriter``; records carry the original's tags.
        log_interval: steps between two records.

    Raises:
        UserError: if the model has no layer that the settings could act on.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: AdaLoraSettings,
        *,
        writer: Any = None,
        log_interval: int = 500,
    ) -> None:
        self.model = model
        self.settings = settings
        self.writer = writer
        self.log_interval = log_interval
        self.svd_layers = [m for m in model.modules() if isinstance(m, SVDLinear) and m.r > 0]
        self.frd_layers = [m for m in model.modules() if isinstance(m, Linear) and m.r > 0]
        self.allocator: RankAllocator | None = None
        self.budget: int | None = None
        self.threshold: Tensor | None = None
        self.history = AllocationHistory(0)
        if settings.allocate and not self.svd_layers:
            raise UserError(
                "AdaLoRA prunes singular values and this model has no SVD layer; put them on with "
                'adalora.adapters.add_lora(model, lora_type="svd", ...) first.'
            )
        if not (self.svd_layers or self.frd_layers):
            raise UserError("This model has no LoRA layer; adalora.adapters.add_lora adds them.")

    @property
    def init_rank(self) -> int:
        """The largest rank a matrix starts with."""
        return max(layer.r for layer in self.svd_layers or self.frd_layers)

    @property
    def total_rank(self) -> int:
        """Triplets in the whole model at the start."""
        return sum(layer.r for layer in self.svd_layers or self.frd_layers)

    def begin(self, total_steps: int) -> None:
        """Fix the length of the run; call it once, before the first step.

        Raises:
            UserError: if the schedule does not fit ``total_steps``.
        """
        if not self.settings.allocate:
            return
        settings = self.settings
        self.history = AllocationHistory(total_steps)
        schedule = settings.schedule(self.total_rank, len(self.svd_layers), total_steps)
        try:
            self.allocator = RankAllocator(
                self.model,
                lora_r=self.init_rank,
                target_rank=settings.target_rank,
                init_warmup=schedule.init_warmup,
                final_warmup=schedule.final_warmup,
                mask_interval=settings.mask_interval,
                beta1=settings.beta1,
                beta2=settings.beta2,
                total_step=total_steps,
                target_total_rank=schedule.target_total_rank,
                tb_writter=self.writer,
                tb_writter_loginterval=self.log_interval,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def penalty(self) -> Tensor:
        """Weighted orthogonality penalty to add to the training loss: scalar, float32.

        Zero, without a graph, when the coefficient is zero.
        """
        weight = self.settings.orth_reg_weight
        if weight == 0:
            first = (self.svd_layers or self.frd_layers)[0]
            return torch.zeros((), device=first.lora_A.device)
        if self.svd_layers:
            return weight * orthogonality(self.svd_layers)
        return compute_frd_orth_regu(self.model, regu_weight=weight)

    def step(self, global_step: int) -> tuple[int | None, Tensor | None]:
        """Update importance and, when the schedule says so, prune.

        Call it after ``optimizer.step()`` and before ``zero_grad()``.

        Args:
            global_step: index of the step just made, from 0.

        Returns:
            Budget in triplets, and the score at or below which triplets were pruned (scalar on
            the model's device), or None where nothing was pruned.
        """
        if not self.settings.allocate:
            return None, None
        if self.allocator is None:
            raise UserError("AdaLora.step was called before AdaLora.begin(total_steps).")
        allocator, before = self.allocator, self.allocator.mask_events
        self.budget, threshold = allocator.update_and_mask(self.model, global_step)
        if threshold is not None:
            self.threshold = threshold
        if allocator.mask_events > before:
            self.history.note(global_step, self.budget, threshold, allocator.survivors())
        return self.budget, threshold

    def rank_pattern(self) -> dict[str, int]:
        """Triplets kept per matrix, keyed ``<module>.lora_E``; the initial ranks without one."""
        if self.allocator is not None:
            return self.allocator.get_rank_pattern()
        return {
            f"{name}.lora_E": module.r
            for name, module in self.model.named_modules()
            if isinstance(module, SVDLinear) and module.r > 0
        }

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
            UserError: if it was never called, never pruned, or never saw a usable gradient.
        """
        if not self.settings.allocate:
            return
        allocator = self.allocator
        if allocator is None or allocator.steps_seen == 0:
            raise UserError(
                "AdaLoRA was asked for and its allocator was never called, so no rank changed: "
                "call AdaLora.step after every optimizer.step()."
            )
        if allocator.skipped_steps == allocator.updates_due:
            raise UserError(
                f"The allocator saw no usable gradient in any of {allocator.steps_seen} steps: "
                "call AdaLora.step before zero_grad(), and look for a loss that is not finite."
            )

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue exactly."""
        if self.allocator is None:
            return {}
        own = {"threshold": self.threshold, "history": self.history.state_dict()}
        return {**self.allocator.state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any], *, reschedule: bool = False) -> None:
        """Continue from ``state``; call it after ``begin``.

        Args:
            state: from ``state_dict``.
            reschedule: go on by this run's schedule where it differs from that of ``state``.

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

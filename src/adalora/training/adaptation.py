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

``AdaLoraSettings`` names its variants: other scores, ranks that grow, plain LoRA that is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adalora.errors import UserError
from adalora.training.allocation_history import AllocationHistory
from loralib import (
    ALLOCATIONS,
    SCORES,
    BudgetSchedule,
    Linear,
    RankAllocator,
    SVDLinear,
    compute_frd_orth_regu,
    make_schedule,
    orthogonality,
)

__all__ = ["AdaLora", "AdaLoraSettings"]


@dataclass(frozen=True)
class AdaLoraSettings:
    """The method's numbers, in the paper's terms.

    ``init_warmup`` and ``final_warmup`` are steps, or fractions of all steps when below 1.
    ``target_total_rank`` (triplets in the whole model) overrides ``target_rank`` (mean per matrix).
    With ``allocate=False`` the ranks stay fixed and only the penalty is active.

    ``importance_score`` (``uncertainty``, ``sensitivity``, ``magnitude``) says what a triplet is
    judged by, ``allocation`` whether ranks are pruned (``prune``) or ``grow`` from one up to
    those of the layers; ``prune_lora`` allocates doublets of plain LoRA layers instead of triplets.

    Raises:
        UserError: if a word is unknown, or doublets are to grow.
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
    importance_score: str = "uncertainty"
    allocation: str = "prune"
    prune_lora: bool = False

    def __post_init__(self) -> None:
        for name, known in (("importance_score", SCORES), ("allocation", ALLOCATIONS)):
            word = getattr(self, name)
            if word not in known:
                raise UserError(f"{name} is {word!r}; choose one of {', '.join(known)}.")
        if self.prune_lora and self.allocation == "grow":
            raise UserError(
                "Plain LoRA is pruned and cannot grow: a masked doublet gets no gradient; leave "
                "--allocation grow out, or use --apply_adalora --lora_type svd."
            )

    @property
    def grows(self) -> bool:
        """Whether ranks start at one and grow."""
        return self.allocate and self.allocation == "grow"

    def steps(self, total_steps: int) -> tuple[int, int]:
        """(initial, final) warm-up in steps of a run of ``total_steps`` steps."""
        return (
            _as_steps(self.init_warmup, total_steps),
            _as_steps(self.final_warmup, total_steps),
        )

    def schedule(self, total_rank: int, matrices: int, total_steps: int) -> BudgetSchedule:
        """The budget over a run (paper §3.3 and appendix A).

        Args:
            total_rank: triplets in the model, masked ones included.
            matrices: number of adapted matrices.
            total_steps: optimizer steps of the run.

        Raises:
            UserError: if the warm-ups leave no step for the budget to change in, or the target
                cannot be reached from the start.
        """
        init_warmup, final_warmup = self.steps(total_steps)
        target = self.target_total_rank
        if target is None:
            target = self.target_rank * matrices
        if init_warmup + final_warmup >= total_steps:
            phase = "growth" if self.grows else "decay"
            raise UserError(
                f"The schedule leaves no {phase} phase: init_warmup {init_warmup} + final_warmup "
                f"{final_warmup} steps fill the {total_steps} steps of this run. Lower them, or "
                "give fractions of the run such as --init_warmup 0.1 --final_warmup 0.3."
            )
        try:
            return make_schedule(
                self.allocation,
                most=total_rank,
                matrices=matrices,
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
        model: holds ``loralib.SVDLinear`` layers (or ``loralib.Linear`` with ``allocate=False`` or
            ``prune_lora=True``); an unwrapped model, not its DistributedDataParallel shell.
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
        if settings.allocate and settings.prune_lora and not self.frd_layers:
            raise UserError(
                "prune_lora prunes plain LoRA and this model has no such layer; put them on with "
                'adalora.adapters.add_lora(model, lora_type="frd", ...) first.'
            )
        if settings.allocate and not settings.prune_lora and not self.svd_layers:
            raise UserError(
                "AdaLoRA prunes singular values and this model has no SVD layer; put them on with "
                'adalora.adapters.add_lora(model, lora_type="svd", ...) first.'
            )
        if not (self.svd_layers or self.frd_layers):
            raise UserError("This model has no LoRA layer; adalora.adapters.add_lora adds them.")

    @property
    def layers(self) -> Sequence[SVDLinear | Linear]:
        """The layers that the method acts on."""
        if self.settings.prune_lora:
            return self.frd_layers
        return self.svd_layers or self.frd_layers

    @property
    def init_rank(self) -> int:
        """The largest rank a matrix starts with; where ranks grow, the largest it may reach."""
        return max(layer.r for layer in self.layers)

    @property
    def total_rank(self) -> int:
        """Triplets in the whole model, masked ones included."""
        return sum(layer.r for layer in self.layers)

    def begin(self, total_steps: int) -> None:
        """Fix the length of the run; call it once, before the first step.

        Raises:
            UserError: if the schedule does not fit ``total_steps``.
        """
        if not self.settings.allocate:
            return
        settings = self.settings
        self.history = AllocationHistory(total_steps)
        schedule = settings.schedule(self.total_rank, len(self.layers), total_steps)
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
                lora_type="frd" if settings.prune_lora else "svd",
                score=settings.importance_score,
                allocation=settings.allocation,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

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

    def step(self, global_step: int) -> tuple[int | None, Tensor | None]:
        """Update importance and, when the schedule says so, allocate.

        Call it after ``optimizer.step()`` and before ``zero_grad()``.

        Args:
            global_step: index of the step just made, from 0.

        Returns:
            Budget in triplets, and the score at or below which triplets were pruned (scalar on
            the model's device; where ranks grow, of the first matrix to get no more), or None
            where nothing was chosen.
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

    def at_target(self, steps: int) -> bool:
        """Whether the budget is at its target for good, once ``steps`` steps were made.

        Without a final phase no step is of that kind, and every one passes.
        """
        schedule = None if self.allocator is None else self.allocator.schedule
        if schedule is None or schedule.final_warmup == 0:
            return True
        return steps - 1 > schedule.total_step - schedule.final_warmup

    def rank_pattern(self) -> dict[str, int]:
        """Triplets kept per matrix, keyed ``<module>.lora_E``; those of the start before ``begin``.

        Plain LoRA that is not pruned has none. Where it is, the key is the same, and counts
        doublets.
        """
        if self.allocator is not None:
            return self.allocator.get_rank_pattern()
        ranked = self.frd_layers if self.settings.prune_lora else self.svd_layers
        paths = {module: path for path, module in self.model.named_modules()}
        return {f"{paths[layer]}.lora_E": 1 if self.settings.grows else layer.r for layer in ranked}

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

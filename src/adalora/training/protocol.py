"""What a method over a model offers to the Trainer, and the numbers that AdaLoRA has.

``Adaptation`` is the interface of ``AdaLora`` (``adaptation.py``) and of PEFT's own AdaLoRA
(``peft_adaptation.py``), so that the Trainer, its checkpoints and a run's record need not know
which of the two they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from adalora.errors import UserError
from adalora.training.allocation_history import AllocationHistory
from loralib import BudgetSchedule, make_schedule
from loralib.allocator import check_method


@dataclass(frozen=True)
class AdaLoraSettings:
    """The method's numbers, in the paper's terms.

    ``init_warmup`` and ``final_warmup`` are steps, or fractions of all steps when below 1.
    ``target_total_rank`` (triplets in the whole model) overrides ``target_rank`` (mean per matrix).
    With ``allocate=False`` the ranks stay fixed and only the penalty is active.

    ``importance_score`` (``uncertainty``, ``sensitivity``, ``magnitude``) says what a triplet is
    judged by, ``allocation`` whether ranks are pruned (``prune``), ``grow`` from one up to those of
    the layers, ``exchange`` places, or are pruned by a control's rule (``uniform``, ``random``,
    ``frozen``); ``prune_lora`` allocates doublets of plain LoRA layers instead of triplets.

    Raises:
        UserError: if a word is unknown, a beta is not between 0 and 1, or doublets are to grow.
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
        try:
            check_method(
                importance_score=self.importance_score,
                allocation=self.allocation,
                lora_type=self.lora_type,
                beta1=self.beta1,
                beta2=self.beta2,
            )
        except ValueError as error:
            raise UserError(f"{error}.") from error

    @property
    def lora_type(self) -> str:
        """What is allocated, as ``loralib.RankAllocator`` names it."""
        return "frd" if self.prune_lora else "svd"

    @property
    def grows(self) -> bool:
        """Whether not all triplets are in use at the start."""
        return self.allocate and self.allocation in ("grow", "exchange")

    def target(self, matrices: int) -> int:
        """Triplets at the end, in the whole model."""
        total = self.target_total_rank
        return self.target_rank * matrices if total is None else total

    def steps(self, total_steps: int) -> tuple[int, int]:
        """(initial, final) warm-up in steps of a run of ``total_steps`` steps.

        A fraction gives a final phase of at least two steps, where there are as many: the ranks
        are final from its second step on.
        """
        warmups = (self.init_warmup, self.final_warmup)
        init, final = (round(w * total_steps) if 0 < w < 1 else int(w) for w in warmups)
        if 0 < self.final_warmup < 1:
            final = max(final, min(2, total_steps - init - 1))
        return init, final

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
        try:
            return make_schedule(
                self.allocation,
                most=total_rank,
                matrices=matrices,
                target_total_rank=self.target(matrices),
                init_warmup=init_warmup,
                final_warmup=final_warmup,
                mask_interval=self.mask_interval,
                total_step=total_steps,
            )
        except ValueError as error:
            raise UserError(f"The budget's schedule does not fit this run: {error}.") from error


class Losses(NamedTuple):
    """Of one batch: what is differentiated, the task's part (detached), and the penalty in it."""

    total: Tensor
    task: Tensor
    penalty: Tensor | None


class AllocationCounts(NamedTuple):
    """What an allocator did in a run; ``updates_due`` steps were to update the importance."""

    steps_seen: int
    updates_due: int
    skipped_steps: int
    mask_events: int
    target_total_rank: int


class Adaptation(Protocol):
    """A method over one model, as the Trainer, its checkpoints and a run's record use it.

    ``begun`` is whether ``begin`` has fixed the schedule; ``init_rank`` the largest rank that a
    matrix starts with (where ranks grow, may reach); ``total_rank`` the triplets in the whole
    model, masked ones included; with ``needs_model_loss`` the penalty can only be added to the
    loss that the model itself computes.
    """

    settings: AdaLoraSettings
    history: AllocationHistory
    budget: int | None
    threshold: Tensor | None
    begun: bool
    init_rank: int
    total_rank: int
    needs_model_loss: bool

    def task_model(self, model: nn.Module) -> nn.Module:
        """The part of ``model`` whose loss is the task's alone."""

    def losses(self, loss: Tensor) -> Losses:
        """Those of a batch for which the model in training gave ``loss``."""

    def begin(self, total_steps: int) -> None:
        """Fix the length of the run."""

    def step(self, global_step: int) -> Any:
        """Take in the optimizer step just made, whose index is counted from 0."""

    def finish(self) -> None:
        """Check at the end of training that ranks were allocated."""

    def at_target(self, steps: int) -> bool:
        """Whether the budget is at its target for good, once ``steps`` steps were made."""

    def counts(self) -> AllocationCounts | None:
        """What was done so far, None before ``begin``; it waits for the device."""

    def count_triplets(self) -> int:
        """Triplets in use; it waits for the device."""

    def rank_pattern(self) -> dict[str, int]:
        """Triplets kept per matrix, keyed ``<module>.lora_E``."""

    def importance(self) -> dict[str, list[float]]:
        """Module path -> scores of its triplets, in descending order; empty where unknown."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty where there is nothing."""

    def load_state_dict(self, state: Mapping[str, Any], *, reschedule: bool = False) -> None:
        """Continue from ``state``; call it after ``begin``."""

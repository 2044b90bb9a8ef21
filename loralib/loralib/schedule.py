"""How many triplets the whole model may keep at each step of a run.

AdaLoRA (arXiv 2303.10512) §3.3 and appendix A: all of them up to ``init_warmup``, a cubic decay,
then the target for the last ``final_warmup`` steps. The paper's eq. 14 has a slip of sign; this is
the published code's form (QingruZhang/AdaLoRA, ``loralib/adalora.py``), with its rounding down.
``GrowthSchedule`` has the same three phases with a budget that rises evenly in the middle one, and
``ExchangeSchedule`` has one budget for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class BudgetSchedule:
    """The budget b(t), in triplets over the whole model, for steps counted from 0.

    Args:
        total_rank: triplets at the start.
        target_total_rank: triplets at the end.
        init_warmup: last step with the starting budget (tᵢ).
        final_warmup: steps at the end with the target budget (t_f).
        mask_interval: steps between two allocations while the budget changes (ΔT).
        total_step: optimizer steps of the run (T).

    Raises:
        ValueError: if a number is out of its range, the target is above the start, or the warm-ups
            leave no step to fall in.
    """

    #: The word for it, as ``RankAllocator`` takes it, and what happens in its middle phase.
    allocation: ClassVar[str] = "prune"
    phase: ClassVar[str] = "decay"

    total_rank: int
    target_total_rank: int
    init_warmup: int
    final_warmup: int
    mask_interval: int
    total_step: int

    def __post_init__(self) -> None:
        for name in ("init_warmup", "final_warmup", "target_total_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.mask_interval < 1:
            raise ValueError(f"mask_interval must be 1 or more, got {self.mask_interval}")
        self._check_target()
        if self.total_step <= self.init_warmup + self.final_warmup:
            raise ValueError(
                f"init_warmup {self.init_warmup} + final_warmup {self.final_warmup} leave no "
                f"{self.phase} phase, because total_step is {self.total_step}; lower them, to 0.1 "
                f"and 0.3 of the {self.total_step} steps for example"
            )

    @property
    def room(self) -> int:
        """Triplets that the model has, masked ones included."""
        return self.total_rank

    def _check_target(self) -> None:
        if self.target_total_rank > self.total_rank:
            raise ValueError(
                f"the target of {self.target_total_rank} triplets is above the {self.total_rank} "
                "that the model starts with: lower target_rank (or target_total_rank), or raise "
                "lora_r"
            )

    def budget(self, step: int) -> int:
        """Triplets allowed after ``step``."""
        end = self.total_step - self.final_warmup
        if step <= self.init_warmup:
            return self.total_rank
        if step > end:
            return self.target_total_rank
        return self._between(1 - (step - self.init_warmup) / (end - self.init_warmup))

    def _between(self, left: float) -> int:
        """The budget where ``left`` of the middle phase is still to come."""
        span = self.total_rank - self.target_total_rank
        return int(self.target_total_rank + span * left**3)

    def masks(self, step: int) -> bool:
        """Whether triplets are chosen anew after ``step``."""
        if step <= self.init_warmup:
            return False
        if step > self.total_step - self.final_warmup:
            return True
        return step % self.mask_interval == 0

    def still_grows(self, step: int) -> bool:
        """Whether a matrix may get a triplet that it has not after a step behind ``step``."""
        return self.budget(step) < self.target_total_rank


@dataclass(frozen=True)
class GrowthSchedule(BudgetSchedule):
    """A budget that rises from ``total_rank`` to ``target_total_rank``, evenly over the steps.

    IncreLoRA (arXiv 2308.12043) adds as many triplets every interval until the target is reached.
    Departure: how many follows from the length of the middle phase, where IncreLoRA is given
    how many and ends when it ends.

    Args:
        most: triplets that the model has room for, masked ones included.

    Raises:
        ValueError: as ``BudgetSchedule``; if the target is below the start or above the room; or
            if ``final_warmup`` leaves no step in which the ranks are final.
    """

    allocation: ClassVar[str] = "grow"
    phase: ClassVar[str] = "growth"

    most: int

    @property
    def room(self) -> int:
        """Triplets that the model has, masked ones included."""
        return self.most

    def _check_target(self) -> None:
        if not self.total_rank <= self.target_total_rank <= self.most:
            raise ValueError(
                f"ranks grow from {self.total_rank} triplets, one per matrix, to at most "
                f"{self.most} (lora_r), and the target of {self.target_total_rank} lies outside: "
                "change target_rank (or target_total_rank), or raise lora_r"
            )
        self._check_end()

    def _check_end(self) -> None:
        if self.final_warmup < 2:
            raise ValueError(
                f"final_warmup is {self.final_warmup}: growing ranks need at least 2 steps at the "
                "target, because the last triplets are added in the first of them"
            )

    def _between(self, left: float) -> int:
        span = self.target_total_rank - self.total_rank
        return self.total_rank + int(span * (1 - left))


@dataclass(frozen=True)
class ExchangeSchedule(GrowthSchedule):
    """One budget from the first step to the last; triplets change places in the middle phase.

    Raises:
        ValueError: as ``GrowthSchedule``.
    """

    allocation: ClassVar[str] = "exchange"
    phase: ClassVar[str] = "exchange"

    def _check_target(self) -> None:
        if self.target_total_rank > self.most:
            raise ValueError(
                f"the target of {self.target_total_rank} triplets is above the {self.most} that "
                "the model has room for: lower target_rank (or target_total_rank), or raise lora_r"
            )
        self._check_end()

    def masks(self, step: int) -> bool:
        """Whether triplets change places after ``step``; never in the final phase."""
        return self.still_grows(step) and super().masks(step)

    def still_grows(self, step: int) -> bool:
        """Whether a triplet may get a place after a step behind ``step``."""
        return step <= self.total_step - self.final_warmup


def schedule_class(allocation: str) -> type[BudgetSchedule]:
    """What kind of budget an allocation is given."""
    kinds: dict[str, type[BudgetSchedule]] = {"grow": GrowthSchedule, "exchange": ExchangeSchedule}
    return kinds.get(allocation, BudgetSchedule)


def make_schedule(allocation: str, *, most: int, matrices: int, **phases: int) -> BudgetSchedule:
    """The schedule of an allocation: from all triplets, or ``grow`` from one per matrix.

    Args:
        allocation: one of ``ALLOCATIONS``.
        most: triplets that the model has room for.
        matrices: number of matrices.
        **phases: the other fields of ``BudgetSchedule``.

    Raises:
        ValueError: as the schedule; or if triplets are to change places between more matrices than
            there are triplets.
    """
    if allocation == "grow":
        return GrowthSchedule(total_rank=matrices, most=most, **phases)
    if allocation == "exchange":
        if (target := phases["target_total_rank"]) < matrices:
            raise ValueError(
                f"the target of {target} triplets is below one for each of the {matrices} "
                "matrices, of which every one keeps one: raise target_rank (or target_total_rank)"
            )
        return ExchangeSchedule(total_rank=phases["target_total_rank"], most=most, **phases)
    return BudgetSchedule(total_rank=most, **phases)

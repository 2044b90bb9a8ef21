"""How many triplets the whole model may keep at each step of a run.

AdaLoRA (arXiv 2303.10512) §3.3 and appendix A: all of them up to ``init_warmup``, a cubic decay,
then the target for the last ``final_warmup`` steps. The paper's eq. 14 has a slip of sign; this is
the published code's form (QingruZhang/AdaLoRA, ``loralib/adalora.py``), with its rounding down.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BudgetSchedule:
    """The budget b(t), in triplets over the whole model, for steps counted from 0.

    Args:
        total_rank: triplets at the start.
        target_total_rank: triplets at the end.
        init_warmup: last step with the whole budget (tᵢ).
        final_warmup: steps at the end with the target budget (t_f).
        mask_interval: steps between two prunings while the budget falls (ΔT).
        total_step: optimizer steps of the run (T).

    Raises:
        ValueError: if a number is out of its range, the target is above the start, or the warm-ups
            leave no step to fall in.
    """

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
        if self.target_total_rank > self.total_rank:
            raise ValueError(
                f"the target of {self.target_total_rank} triplets is above the {self.total_rank} "
                "that the model starts with: lower target_rank (or target_total_rank), or raise "
                "lora_r"
            )
        if self.total_step <= self.init_warmup + self.final_warmup:
            raise ValueError(
                f"init_warmup {self.init_warmup} + final_warmup {self.final_warmup} leave no step "
                f"to prune in: total_step is {self.total_step} and must be more than their sum"
            )

    def budget(self, step: int) -> int:
        """Triplets allowed after ``step``."""
        decay_end = self.total_step - self.final_warmup
        if step <= self.init_warmup:
            return self.total_rank
        if step > decay_end:
            return self.target_total_rank
        left = 1 - (step - self.init_warmup) / (decay_end - self.init_warmup)
        span = self.total_rank - self.target_total_rank
        return int(self.target_total_rank + span * left**3)

    def masks(self, step: int) -> bool:
        """Whether triplets are pruned after ``step``."""
        if step <= self.init_warmup:
            return False
        if step > self.total_step - self.final_warmup:
            return True
        return step % self.mask_interval == 0

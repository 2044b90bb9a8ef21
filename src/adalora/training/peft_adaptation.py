"""PEFT's own AdaLoRA in our Trainer: the calls that PEFT leaves to the training loop.

Stands where ``AdaLora`` does, over PEFT's layers and PEFT's allocator. Three things that a plain
Trainer gets wrong are put right: the allocator is called after every optimizer step, with the
gradients in place; it knows the run's real number of steps; and the penalty, which PEFT's forward
adds to the loss, stays out of the evaluation's loss and of the logged one. Its state is kept in
checkpoints, which PEFT does not offer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from adalora.errors import UserError
from adalora.training.allocation_history import AllocationHistory
from adalora.training.protocol import AdaLoraSettings, AllocationCounts, Losses

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class PeftAdaLora:
    """PEFT's allocator over one model that PEFT has wrapped.

    Args:
        model: a ``peft.PeftModel`` of type ADALORA, unwrapped otherwise.
    """

    #: PEFT's forward adds the penalty to the loss that the model computes.
    needs_model_loss = True

    def __init__(self, model: nn.Module) -> None:
        self.model = cast(Any, model)
        config = self._config
        self.settings = AdaLoraSettings(
            target_rank=config.target_r,
            init_warmup=config.tinit,
            final_warmup=config.tfinal,
            mask_interval=config.deltaT,
            beta1=config.beta1,
            beta2=config.beta2,
            orth_reg_weight=config.orth_reg_weight,
        )
        self._allocator: Any = self.model.base_model.rankallocator
        self.init_rank = int(config.init_r)
        self.total_rank = int(self._allocator.init_bgt)
        self.begun = False
        self.budget: int | None = None
        self.threshold: Tensor | None = None
        self.steps_seen = self.mask_events = 0
        self.task_loss: Tensor | None = None
        self.history = AllocationHistory(0)
        self._watch_task_loss()

    @property
    def _config(self) -> Any:
        return self.model.peft_config["default"]

    @property
    def classifier(self) -> nn.Module:
        """The adapted classifier without PEFT's wrapper, whose loss is the task's alone."""
        classifier: nn.Module = self.model.get_base_model()
        return classifier

    def _watch_task_loss(self) -> None:
        """Keep the loss that the classifier gives to PEFT's forward, which calls no hooks."""
        forward = self.classifier.forward

        @functools.wraps(forward)
        def watched(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            loss = getattr(output, "loss", None)
            # A copy: PEFT adds the penalty into this very tensor.
            self.task_loss = None if loss is None else loss.detach().clone()
            return output

        self.classifier.forward = watched  # type: ignore[method-assign]

    def task_model(self, model: nn.Module) -> nn.Module:
        """The classifier that PEFT has wrapped."""
        return self.classifier

    def losses(self, loss: Tensor) -> Losses:
        """``loss`` as it is, because PEFT's forward has added the penalty."""
        total = loss.detach()
        if self.settings.orth_reg_weight == 0 or self.task_loss is None:
            return Losses(loss, total, None)
        return Losses(loss, self.task_loss, total - self.task_loss)

    def counts(self) -> AllocationCounts | None:
        """What PEFT's allocator did so far; None before ``begin``."""
        if not self.begun:
            return None
        return AllocationCounts(
            steps_seen=self.steps_seen,
            updates_due=self.steps_seen,
            skipped_steps=0,
            mask_events=self.mask_events,
            target_total_rank=int(self._allocator.target_bgt),
        )

    def importance(self) -> dict[str, list[float]]:
        """Nothing: PEFT's allocator drops its scores when it prunes for good."""
        return {}

    def begin(self, total_steps: int) -> None:
        """Give PEFT's schedule the length of the run.

        Raises:
            UserError: if it leaves no step to prune in.
        """
        config = self._config
        if config.tinit + config.tfinal >= total_steps:
            raise UserError(
                f"PEFT's schedule leaves no step to prune in: tinit {config.tinit} and tfinal "
                f"{config.tfinal} fill the {total_steps} steps of this run; lower them."
            )
        self._allocator.set_total_step(total_steps)
        if self.begun:  # another run of the same model
            self._allocator.reset_ipt()
            config.rank_pattern = None
            self.steps_seen = self.mask_events = 0
        self.history = AllocationHistory(total_steps)
        self.begun = True

    def step(self, global_step: int) -> None:
        """Have PEFT update importance and prune; after ``optimizer.step()``, before zeroing."""
        before = self._config.rank_pattern
        self.model.base_model.update_and_allocate(global_step)
        self.steps_seen += 1
        self.budget, _ = self._allocator.budget_schedule(global_step)
        pattern = self._config.rank_pattern
        if pattern is not before:
            self.mask_events += 1
            kept = {name.removesuffix(".default"): torch.tensor(k) for name, k in pattern.items()}
            # PEFT gives no threshold.
            self.history.note(global_step, self.budget, None, kept)

    def at_target(self, steps: int) -> bool:
        """Whether the budget is at its target for good, once ``steps`` steps were made."""
        return not self.begun or steps > self._config.total_step - max(self._config.tfinal, 1)

    def count_triplets(self) -> int:
        """Triplets that the rank pattern keeps."""
        return sum(self.rank_pattern().values())

    def rank_pattern(self) -> dict[str, int]:
        """Triplets kept per matrix, keyed ``<module>.lora_E``."""
        pattern = self._config.rank_pattern or {
            name: [True] * len(parameter)
            for name, parameter in self.classifier.named_parameters()
            if ".lora_E." in name
        }
        return {name.removesuffix(".default"): sum(kept) for name, kept in pattern.items()}

    def finish(self) -> None:
        """Raise a ``UserError`` at the end of training if ranks were never pruned."""
        if self._config.rank_pattern is None:
            raise UserError(
                "PEFT's AdaLoRA pruned nothing in this run: deltaT is longer than the steps "
                "between its warm-ups; lower it."
            )

    def state_dict(self) -> dict[str, Any]:
        """Averages by parameter, the ranks and what was counted."""
        return {
            **{name: dict(getattr(self._allocator, name)) for name in _AVERAGES},
            "rank_pattern": self._config.rank_pattern,
            "counts": [self.steps_seen, self.mask_events],
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, reschedule: bool = False) -> None:
        """Continue from ``state``; call it after ``begin``. The schedule is always this run's.

        Raises:
            UserError: if the state is of another allocator.
        """
        try:
            for name in _AVERAGES:
                here = {key: value.to(self.model.device) for key, value in state[name].items()}
                setattr(self._allocator, name, here)
            self._config.rank_pattern = state["rank_pattern"]
            self.steps_seen, self.mask_events = state["counts"]
            self.history.load_state_dict(state.get("history", {}))
        except (KeyError, TypeError, ValueError) as error:
            message = f"The allocator's state does not fit PEFT's AdaLoRA: {error}"
            raise UserError(message) from error

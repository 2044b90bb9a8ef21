"""RankAllocator: spends a global budget of singular values where they matter.

AdaLoRA (arXiv 2303.10512) algorithm 1, in the order of the published code (QingruZhang/AdaLoRA,
``loralib/adalora.py``): after each optimizer step, importance is updated from the step's gradients,
and when the schedule says so all but the best b(t) triplets have their singular value set to zero.
They keep receiving gradient, so that a triplet can come back before the final phase, in which
importance stands still. A step with a gradient that is not finite is no step for importance, while
the schedule continues. Selection is one sort on the device; nothing waits for the host.

The variants: what is scored (``importance``), what a budget buys (``selection``), and what is
masked in which kind of layer (``ranked``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .importance import SCORES, make_importance
from .ranked import factors_of, mask, ranked_layers
from .schedule import BudgetSchedule, make_schedule, schedule_class
from .selection import ALLOCATIONS, make_rule

# What a state holds of these attributes by their names.
_COUNTERS = ("global_step", "steps_seen", "updates_due", "mask_events")


def check_method(
    *, importance_score: str, allocation: str, lora_type: str, beta1: float, beta2: float
) -> None:
    """Refuse a variant that does not exist; the only place that does.

    Raises:
        ValueError: if a word is unknown, a beta is not between 0 and 1, or doublets are to grow.
    """
    for name, word, known in (
        ("importance_score", importance_score, SCORES),
        ("allocation", allocation, ALLOCATIONS),
    ):
        if word not in known:
            *others, last = known
            raise ValueError(f"{name} is {word!r}; choose {', '.join(others)} or {last}")
    if allocation in ("grow", "exchange") and lora_type == "frd":
        raise ValueError(
            f"allocation is {allocation!r}, and doublets of plain LoRA cannot grow, because a "
            "masked one gets no gradient; prune them, or use SVD layers"
        )
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 < beta < 1:
            raise ValueError(f"{name} is {beta}; it must be above 0 and below 1")


class RankAllocator:
    """Allocates the budget over the layers of a model; the original's, if nothing is said by name.

    Args:
        model: holds SVDLinear layers; it may be wrapped (DistributedDataParallel), and may be moved
            to another device later.
        lora_r: initial rank per matrix; the model's own ranks count, and this is not used.
        target_rank: mean rank per matrix at the end.
        init_warmup: last step with the starting budget.
        final_warmup: steps at the end with the target budget.
        mask_interval: steps between two allocations.
        beta1: average of the sensitivity, in (0, 1).
        beta2: average of the uncertainty, in (0, 1).
        total_step: optimizer steps of the run; may be set later by ``set_total_step``.
        target_total_rank: triplets over the whole model at the end; overrides ``target_rank``.
        tb_writter: a TensorBoard SummaryWriter (the original's spelling).
        tb_writter_loginterval: steps between two records.
        lora_type: ``svd`` allocates triplets of SVDLinear layers, ``frd`` doublets of plain LoRA
            layers.
        importance_score: ``uncertainty`` (eq. 13), ``sensitivity`` (eq. 11 alone) or ``magnitude``
            (|λ|).
        allocation: ``prune`` from the ranks of the layers down to the target, ``grow`` up to it
            from one triplet per matrix, to at most those ranks, or ``exchange`` between matrices
            at the target; controls that prune as ``prune`` does, but not by where the score is
            high: ``uniform`` (every matrix as many), ``random`` (by lot) and ``frozen`` (by the
            scores of the first allocation).
        process_group: the processes that train this model together, of which the first decides for
            all; None for every process of torch's default group, where there is one. Processes that
            train models of their own take groups of their own.

    Raises:
        ValueError: if the model has no layer of that type, a number is out of its range, a word is
            unknown, or doublets are to grow.
    """

    def __init__(
        self,
        model: nn.Module,
        lora_r: int,
        target_rank: int,
        init_warmup: int,
        final_warmup: int,
        mask_interval: int,
        beta1: float,
        beta2: float,
        total_step: int | None = None,
        target_total_rank: int | None = None,
        tb_writter: Any = None,
        tb_writter_loginterval: int = 500,
        *,
        lora_type: str = "svd",
        importance_score: str = "uncertainty",
        allocation: str = "prune",
        process_group: Any = None,
    ) -> None:
        check_method(
            importance_score=importance_score,
            allocation=allocation,
            lora_type=lora_type,
            beta1=beta1,
            beta2=beta2,
        )
        self.tb_writter, self.log_interval = tb_writter, tb_writter_loginterval
        if self.log_interval < 1:
            raise ValueError(f"tb_writter_loginterval must be 1 or more, got {self.log_interval}")
        self.lora_type, self.importance_score = lora_type, importance_score
        self.allocation = allocation
        self._take(model)
        self._ranks = [layer.r for layer in self._layers.values()]
        self.total_rank = sum(self._ranks)
        self.beta1, self.beta2 = beta1, beta2
        self.process_group = process_group
        self.schedule: BudgetSchedule | None = None
        self.global_step = -1
        self.steps_seen = self.updates_due = self.mask_events = 0
        if target_total_rank is None:
            target_total_rank = target_rank * len(self._layers)
        #: The original's attribute is a total, where its argument of this name is a mean.
        self.target_rank = target_total_rank
        self._phases = {"target_total_rank": target_total_rank, "mask_interval": mask_interval}
        self._phases |= {"init_warmup": init_warmup, "final_warmup": final_warmup}
        self._make_state()
        if total_step is not None:
            self.set_total_step(total_step)

    @classmethod
    def from_schedule(
        cls, model: nn.Module, schedule: BudgetSchedule, *, beta1: float, beta2: float, **how: Any
    ) -> Self:
        """An allocator that follows ``schedule``, which also says whether ranks fall or grow.

        Args:
            model: as for the constructor, like ``beta1`` and ``beta2``.
            schedule: over the triplets of ``model``.
            **how: ``lora_type``, ``importance_score``, ``allocation`` (where the schedule leaves a
                choice), ``tb_writter``, ``tb_writter_loginterval``.

        Raises:
            ValueError: as the constructor, or if the schedule is for another number of triplets
                or another allocation.
        """
        allocation = how.setdefault("allocation", schedule.allocation)
        if type(schedule) is not schedule_class(allocation):
            raise ValueError(
                f"a {type(schedule).__name__} says {schedule.allocation!r}, and allocation is "
                f"{allocation!r}, which has a {schedule_class(allocation).__name__}"
            )
        allocator = cls(
            model,
            lora_r=schedule.room,
            target_rank=0,
            init_warmup=schedule.init_warmup,
            final_warmup=schedule.final_warmup,
            mask_interval=schedule.mask_interval,
            beta1=beta1,
            beta2=beta2,
            target_total_rank=schedule.target_total_rank,
            **how,
        )
        if schedule.room != allocator.total_rank:
            raise ValueError(
                f"the schedule is for {schedule.room} triplets, and the model has "
                f"{allocator.total_rank}"
            )
        allocator.schedule = schedule
        return allocator

    def _take(self, model: nn.Module) -> None:
        """Find the layers of ``model``, and the parameters that its optimizer steps with them."""
        self.model = model
        self._layers = ranked_layers(model, self.lora_type)
        names = factors_of(self._layers)
        factors = {layer.factors()[name] for layer in self._layers.values() for name in names}
        self._others = [p for p in model.parameters() if p not in factors]

    @property
    def _device(self) -> torch.device:
        return next(iter(self._layers.values())).lora_A.device

    def _make_state(self) -> None:
        """Make what is kept from step to step, as before the first, where the model is now."""
        device = self._device
        betas = (self.beta1, self.beta2)
        self.importance = make_importance(self.importance_score, self._layers, *betas)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._rule = make_rule(self.allocation, self._ranks, device, budget=self.target_rank)
        first = self._rule.first()
        everything = torch.ones(self.total_rank, dtype=torch.bool, device=device)
        self._survivors: Tensor = everything if first is None else first
        # Budget and threshold of the last allocation, while the scores are those that it ordered.
        self._settled: tuple[int, Tensor | None] | None = None

    def _follow(self) -> None:
        """Take what is kept to the device that the model has been moved to since."""
        importance, rule = self.importance.state_dict(), self._rule.state_dict()
        skipped, survivors = self._skipped, self._survivors
        self._make_state()
        if survivors.is_meta:  # where there are no values
            return
        device = self._device
        self.importance.load_state_dict(importance)
        self._rule.load_state_dict({name: tensor.to(device) for name, tensor in rule.items()})
        self._skipped, self._survivors = skipped.to(device), survivors.to(device)

    def set_total_step(self, total_step: int) -> None:
        """Fix the length of the run.

        Raises:
            ValueError: as ``BudgetSchedule`` or ``GrowthSchedule``.
        """
        self.schedule = make_schedule(
            self.allocation,
            most=self.total_rank,
            matrices=len(self._layers),
            total_step=total_step,
            **self._phases,
        )

    @property
    def skipped_steps(self) -> int:
        """Of ``updates_due`` steps, those whose gradients were missing or not finite.

        Reading it waits for the device.
        """
        return int(self._skipped)

    def update_and_mask(self, model: nn.Module, global_step: int) -> tuple[int, Tensor | None]:
        """Take in one optimizer step; call it after ``optimizer.step()``, before ``zero_grad()``.

        Args:
            model: the model given to the constructor, or the same one wrapped or unwrapped.
            global_step: index of the step just made, from 0.

        Returns:
            The budget in triplets, and the score at or below which triplets were pruned (scalar,
            on the model's device), None where nothing was pruned. With ties at the threshold the
            earlier triplets survive. Where ranks grow, it is the score of the first matrix to get
            none, and None between two allocations; with ``uniform`` and ``exchange`` that of the
            first triplet without a place, and with ``random`` a number that was drawn.

        Raises:
            ValueError: if the total number of steps was never set.
        """
        schedule = self._require_schedule()
        moved = self._survivors.device != self._device
        if moved or model is not self.model:
            self._take(model)
        if moved:
            self._follow()
        self.global_step = global_step
        self.steps_seen += 1
        if global_step < schedule.total_step - schedule.final_warmup:
            self.updates_due += 1
            others = [p.grad for p in self._others if p.grad is not None]
            self._settled = None
            counted = self.importance.update(self._layers, others)
            self._skipped += 1 if counted is None else ~counted
        budget = schedule.budget(global_step)
        threshold = self._select(budget) if schedule.masks(global_step) else None
        self._mask(schedule.still_grows(global_step), chosen=threshold is not None)
        if self.tb_writter is not None and global_step % self.log_interval == 0:
            self._log(threshold)
        return budget, threshold

    def _require_schedule(self) -> BudgetSchedule:
        if self.schedule is None:
            raise ValueError(
                "total_step was never set: give it to RankAllocator(total_step=...) or call "
                f"set_total_step (init_warmup {self._phases['init_warmup']}, "
                f"final_warmup {self._phases['final_warmup']})"
            )
        return self.schedule

    @torch.no_grad()
    def _select(self, budget: int) -> Tensor | None:
        """Choose the survivors; the threshold, or None where the budget is all triplets."""
        self.mask_events += 1
        if (
            self._settled is not None
            and self._settled[0] == budget
            and not self._rule.holds_between
        ):
            return self._settled[1]
        scores = self._rule.judged(self.importance.scores())
        group = self.process_group
        if dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1:
            # Averages may differ in the last bit between processes; one of them decides.
            dist.broadcast(scores, group=group, group_src=0)
        order = self._rule.order(scores, self._survivors)
        survivors = torch.zeros_like(scores, dtype=torch.bool)
        survivors[order.indices[:budget]] = True
        self._survivors = survivors
        threshold = None if budget == self.total_rank else order.scores[budget]
        self._settled = (budget, threshold)
        return threshold

    def _mask(self, still_grows: bool, *, chosen: bool) -> None:
        """Mask what did not survive, if that was chosen just now or holds at every step."""
        if not (chosen or self._rule.holds_between):
            return
        reserved = self._rule.reserved(self._survivors) if still_grows else None
        mask(self._layers, self._survivors, reserved)

    def survivors(self) -> dict[str, Tensor]:
        """``<module>.lora_E`` -> bool [r], which triplets the last allocation kept."""
        parts = self._survivors.split(self._ranks)
        return {f"{path}.lora_E": part for path, part in zip(self._layers, parts, strict=True)}

    def get_rank_pattern(self) -> dict[str, int]:
        """``<module>.lora_E`` -> triplets kept; reading it waits for the device."""
        survivors = self.survivors()
        counts = torch.stack([kept.sum() for kept in survivors.values()]).tolist()
        return dict(zip(survivors, counts, strict=True))

    @property
    def rank_pattern(self) -> dict[str, int]:
        """The original's attribute; as ``get_rank_pattern``, with or without TensorBoard."""
        return self.get_rank_pattern()

    @torch.no_grad()
    def _log(self, threshold: Tensor | None) -> None:
        """The original's TensorBoard records; writing them waits for the device."""
        layers = self._layers
        records: dict[str, float] = {}
        if threshold is not None:
            pattern = self.get_rank_pattern()
            records = {f"Ranknum/{name}": rank for name, rank in pattern.items()}
            records["Budget/total_rank"] = sum(pattern.values())
            records["Budget/mask_threshold"] = float(threshold)
            sizes = [layer.in_features + layer.out_features for layer in layers.values()]
            kept = zip(pattern.values(), sizes, strict=True)
            records["Budget/sum_param"] = sum(rank * size for rank, size in kept)
        distances = {}
        for path, layer in layers.items():
            for name, rows in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B.T)):
                gram = (rows @ rows.T).float()
                distance = torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device))
                distances[f"Orth_regu_loss/{path}.{name}"] = float(distance)
        mean = sum(distances.values()) / len(distances)
        for tag, value in {**records, **distances, "train/orth_regu_loss": mean}.items():
            self.tb_writter.add_scalar(tag, value, self.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue exactly: tensors and plain values."""
        return {
            "lora_type": self.lora_type,
            "score": self.importance_score,
            "allocation": self.allocation,
            "schedule": asdict(self._require_schedule()),
            "betas": [self.beta1, self.beta2],
            **{name: getattr(self, name) for name in _COUNTERS},
            "skipped_steps": self.skipped_steps,
            "importance": self.importance.state_dict(),
            "survivors": self.survivors(),
            # The published method's has nothing more; states of before there were controls neither.
            **({"rule": rule} if (rule := self._rule.state_dict()) else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            ValueError: if the state is of another variant, another schedule, other betas or another
                model; the difference is named and nothing is changed.
        """
        # States of before there were variants do not name theirs.
        there: dict[str, Any] = {
            "lora_type": "svd",
            "score": "uncertainty",
            "allocation": "prune",
            **state,
        }
        here: dict[str, Any] = {"lora_type": self.lora_type, "score": self.importance_score}
        _compare("allocation", there, {**here, "allocation": self.allocation})
        there = {**state["schedule"], "beta1": state["betas"][0], "beta2": state["betas"][1]}
        here = {**asdict(self._require_schedule()), "beta1": self.beta1, "beta2": self.beta2}
        _compare("schedule", there, here)
        self._settled = None
        self.importance.load_state_dict(state["importance"])
        own = self.survivors()
        self._survivors = torch.cat([state["survivors"][name].to(own[name]) for name in own])
        self._rule.load_state_dict(
            {name: kept.to(self._survivors.device) for name, kept in state.get("rule", {}).items()}
        )
        self._skipped.fill_(state["skipped_steps"])
        for name in _COUNTERS:
            setattr(self, name, state[name])


def _compare(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    different = [
        f"{name} {there.get(name)} there, {value} here"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if different:
        raise ValueError(f"the state is of another {what}: {'; '.join(different)}")

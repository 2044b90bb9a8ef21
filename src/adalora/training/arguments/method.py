"""Which method adapts the encoder, with its sizes, its schedule and its variants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from adalora.adapters.kinds import LORA_KINDS
from adalora.adapters.lora import INITIALISATIONS
from adalora.adapters.peft_method import peft_method_name, read_peft_values
from adalora.errors import UserError
from adalora.training.arguments.inputs import flag
from adalora.training.protocol import AdaLoraSettings
from adalora.validation import COUNT, FRACTION, NOT_NEGATIVE, Interval, check_flags, check_needs
from loralib import SCORES

_ALLOCATED = {
    "grow": "grown",
    "exchange": "exchanged",
    "uniform": "uniform",
    "random": "at random",
    "frozen": "frozen",
}
_START_NAMES = {"lora": "LoRA's start", "orthogonal": "orthonormal start", "pissa": "PiSSA"}
LORA_MODULES = "query,key,value,intermediate,layer.output,attention.output"

_SIZE = Interval(1, 100_000)
# Flag -> what it may be.
_RULES: dict[str, Interval | Sequence[str]] = {
    "lora_type": tuple(LORA_KINDS),
    "lora_init": tuple(INITIALISATIONS),
    "lora_scaling": ("standard", "rank_stabilised"),
    "adapter_type": ("houlsby", "pfeiffer"),
    "lora_r": _SIZE,
    "lora_alpha": Interval(-1e9, 1e9),
    "lora_dropout": FRACTION,
    "lora_plus_ratio": Interval(0, 1e9, above=True),
    "adapter_size": _SIZE,
    "reg_loss_wgt": NOT_NEGATIVE,
    "masking_prob": FRACTION,
    "reg_orth_coef": NOT_NEGATIVE,
    "target_rank": NOT_NEGATIVE,
    "target_total_rank": NOT_NEGATIVE,
    "init_warmup": NOT_NEGATIVE,
    "final_warmup": NOT_NEGATIVE,
    "mask_interval": COUNT,
    "tb_writter_loginterval": COUNT,
}
# Flag -> the flag without which it does nothing.
_NEEDS = {
    **dict.fromkeys(("lora_init", "lora_scaling", "lora_plus_ratio", "lora_path"), "apply_lora"),
    "reg_orth_coef": "apply_lora",
    "adapter_path": "apply_adapter",
    "masking_prob": "reg_loss_wgt",
}


@dataclass
class MethodArguments:
    """How the model is adapted: LoRA, its SVD form, AdaLoRA, bottleneck adapters, BitFit.

    With none of them the whole model is fine-tuned, as in the original.
    """

    _argument_group_name: ClassVar[str] = "adaptation method"

    apply_lora: bool = flag(False, "Adapt with low-rank matrices.")
    lora_type: str = flag(
        "frd",
        "`frd`: plain LoRA, B·A; `svd`: AdaLoRA's form P·Λ·Q; `dora`: B·A and a norm "
        "for each output.",
    )
    lora_module: str = flag(
        "query,value",
        f"Adapted matrices, comma-separated: any of {LORA_MODULES}, "
        "or re:PATTERN over module paths.",
    )
    lora_alpha: int = flag(16, "Scale: the update is multiplied by lora_alpha / lora_r.")
    lora_r: int | None = flag(None, "Rank of every adapted matrix at the start (init_rank).")
    lora_dropout: float = flag(0.0, "Dropout on the input of the low-rank update.")
    lora_init: str = flag(
        "gaussian",
        "Where the factors start: `gaussian` (as published), `lora` (svd: as plain LoRA, "
        "lora_B at zero and lora_E at one), `orthogonal` (orthonormal, so that the penalty "
        "starts at zero) or `pissa` (the base's principal part).",
    )
    lora_scaling: str = flag(
        "standard",
        "`standard`: lora_alpha / lora_r; `rank_stabilised`: lora_alpha / sqrt(lora_r) (rsLoRA).",
    )
    lora_plus_ratio: float = flag(
        1.0,
        "LoRA+: learning rate of lora_B (with svd, of lora_E) over that of the rest, for "
        "example 16.",
    )
    lora_path: str | None = flag(
        None, "Start from these LoRA weights: a run's model folder or a .bin file."
    )
    apply_adapter: bool = flag(False, "Adapt with bottleneck adapters.")
    adapter_path: str | None = flag(None, "Start from these bottleneck adapter weights.")
    adapter_type: str = flag("houlsby", "`houlsby` or `pfeiffer`.")
    adapter_size: int = flag(64, "Width of the bottleneck.")
    peft_config: str | None = flag(
        None,
        "Train a method of PEFT instead, for comparison: a JSON file with peft_type and its "
        "arguments (examples/text-classification/peft/).",
    )
    apply_bitfit: bool = flag(False, "Train the biases of the base.")
    reg_loss_wgt: float = flag(
        0.0, "Weight of the consistency loss between two dropout passes (classification only)."
    )
    masking_prob: float = flag(
        0.0, "Probability of masking a token in the second pass of --reg_loss_wgt."
    )
    reg_orth_coef: float = flag(0.0, "Coefficient of the orthogonality penalty.")
    apply_adalora: bool = flag(
        False,
        "Allocate a global budget of singular values (needs --apply_lora --lora_type svd). "
        "--apply_rankselector is the name in the original's MRPC script.",
        aliases=("--apply_rankselector",),
    )
    prune_lora: bool = flag(
        False,
        "Prune plain LoRA (--lora_type frd) by the same score and budget, a column of B with "
        "its row of A at a time (the paper's table 4); an ablation of --apply_adalora.",
    )
    importance_score: str = flag(
        "uncertainty",
        "What the budget is allocated by: `uncertainty` (sensitivity times uncertainty, as "
        "published), `sensitivity` (without the uncertainty) or `magnitude` (of the singular "
        "value alone); the last two are the paper's table 4.",
    )
    allocation: str = flag(
        "prune",
        "`prune`: ranks fall from --lora_r to --target_rank; `grow`: they start at 1 and grow "
        "to it, to at most --lora_r in one matrix (in the manner of IncreLoRA); `exchange`: they "
        "start at it, and matrices give triplets to others (ElaLoRA). Controls that prune, but "
        "not where the score says: `uniform` (every matrix as many), `random` (by lot), `frozen` "
        "(by the scores of the first allocation).",
    )
    target_rank: int = flag(16, "Average rank per matrix at the end.")
    target_total_rank: int | None = flag(
        None, "Triplets in the whole model at the end; overrides --target_rank."
    )
    init_warmup: float = flag(
        4500, "Steps before the budget shrinks; below 1, a fraction of all steps."
    )
    final_warmup: float = flag(
        12000, "Last steps with a fixed budget; below 1, a fraction of all steps."
    )
    mask_interval: int = flag(10, "Steps between two allocations.")
    beta1: float = flag(0.85, "Average of the sensitivity.")
    beta2: float = flag(0.85, "Average of its uncertainty.")
    tb_writter_loginterval: int | None = flag(
        None,
        "Steps between TensorBoard records of ranks and penalty; default: a hundredth of the run.",
    )

    def __post_init__(self) -> None:
        check_flags(self, _RULES)
        check_needs(self, _NEEDS)
        # The settings check themselves.
        self.settings  # noqa: B018
        self._check_allocation()
        self._check_lora()
        self.peft_values = self._read_peft()

    def _check_lora(self) -> None:
        if self.apply_lora and self.lora_r is None:
            raise UserError("--apply_lora needs --lora_r, for example --lora_r 8.")
        if self.lora_init == "pissa" and self.lora_path:
            raise UserError(
                f"--lora_init pissa computes where to start from, and --lora_path {self.lora_path} "
                "says where; give one."
            )
        if self.lora_init == "lora" and self.lora_type == "svd" and self.lora_plus_ratio != 1:
            raise UserError(
                f"--lora_plus_ratio {self.lora_plus_ratio:g} raises the learning rate of lora_E, "
                "which --lora_init lora, the start of --apply_adalora, does not start at zero; add "
                "--lora_init gaussian, or leave it out."
            )

    def _check_allocation(self) -> None:
        here = f"here apply_lora is {self.apply_lora} and lora_type is {self.lora_type!r}."
        if self.apply_adalora and not (self.apply_lora and self.lora_type == "svd"):
            raise UserError(
                "--apply_adalora needs --apply_lora --lora_type svd: it prunes singular values, "
                f"and {here} To prune plain LoRA, give --prune_lora instead."
            )
        if self.prune_lora and not (self.apply_lora and self.lora_type == "frd"):
            raise UserError(
                f"--prune_lora needs --apply_lora --lora_type frd: it prunes plain LoRA, and {here}"
            )
        for name in ("importance_score", "allocation"):
            value = getattr(self, name)
            if value != getattr(type(self), name) and not self.allocates:
                raise UserError(
                    f"--{name} {value} does nothing without --apply_adalora or --prune_lora."
                )
        if self.lora_init == "pissa" and self.allocates:
            flag = "--apply_adalora" if self.apply_adalora else "--prune_lora"
            raise UserError(
                f"--lora_init pissa and {flag} do not go together: the triplets would be "
                "the base's own principal ones, and pruning would cut them out of it."
            )

    def _read_peft(self) -> dict[str, Any] | None:
        """The arguments of PEFT's method, which stands alone: its loss and layers are PEFT's."""
        if self.peft_config is None:
            return None
        for name in ("apply_lora", "apply_adapter", "apply_bitfit", "reg_loss_wgt"):
            if getattr(self, name):
                raise UserError(
                    f"--peft_config {self.peft_config} and --{name} are two methods; give one."
                )
        return read_peft_values(self.peft_config)

    @property
    def settings(self) -> AdaLoraSettings:
        """AdaLoRA's numbers that the flags give; a UserError if one is none of the method's."""
        try:
            return AdaLoraSettings(
                target_rank=self.target_rank,
                target_total_rank=self.target_total_rank,
                init_warmup=self.init_warmup,
                final_warmup=self.final_warmup,
                mask_interval=self.mask_interval,
                beta1=self.beta1,
                beta2=self.beta2,
                orth_reg_weight=self.reg_orth_coef,
                allocate=self.allocates,
                importance_score=self.importance_score,
                allocation=self.allocation,
                prune_lora=self.prune_lora,
            )
        except UserError as error:
            raise UserError(f"--{error}") from error

    @property
    def allocates(self) -> bool:
        """Whether a budget of ranks is allocated over the matrices."""
        return self.apply_adalora or self.prune_lora

    @property
    def scaled_alpha(self) -> float:
        """The scale's numerator over ``lora_r``, whichever scaling was chosen.

        rsLoRA (arXiv 2312.03732) divides by the root of the rank, which is plain LoRA of a
        ``lora_alpha`` larger by that root; so artefacts and exports need to know nothing of it.
        """
        if self.lora_scaling == "standard":
            return self.lora_alpha
        return self.lora_alpha * math.sqrt(self.lora_r or 0)

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The names in ``lora_module``, in order; ``re:PATTERN``, which may hold commas, as one."""
        if self.lora_module.startswith("re:"):
            return (self.lora_module,)
        return tuple(name.strip() for name in self.lora_module.split(",") if name.strip())

    @property
    def name(self) -> str:
        """The method in a word or two, for summaries."""
        if self.peft_values is not None:
            return peft_method_name(self.peft_values)
        parts = []
        if self.apply_lora:
            if self.allocates:
                name = "pruned LoRA" if self.prune_lora else "AdaLoRA"
                grown = "" if self.allocation == "prune" else f", {_ALLOCATED[self.allocation]}"
                usual = self.importance_score == SCORES[0]
                parts.append(name + grown + ("" if usual else f", by {self.importance_score}"))
            else:
                parts.append(LORA_KINDS[self.lora_type].title)
        if self.apply_adapter:
            parts.append(f"{self.adapter_type.capitalize()} adapters")
        if self.apply_bitfit:
            parts.append("BitFit")
        name = " + ".join(parts) or "full fine-tuning"
        return f"{name} ({', '.join(self._options)})" if self._options else name

    @property
    def _options(self) -> list[str]:
        """How this run differs from the plain method, by the options' own names."""
        options = (
            _START_NAMES.get(self.lora_init),
            "rsLoRA" if self.lora_scaling == "rank_stabilised" else None,
            f"LoRA+ {self.lora_plus_ratio:g}" if self.lora_plus_ratio != 1 else None,
        )
        return [option for option in options if option is not None]

"""Which method adapts the encoder, with its sizes, its schedule and its variants."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from adalora.adapters.initialise import INITIALISATIONS
from adalora.adapters.lora import LORA_LAYERS
from adalora.adapters.peft_method import peft_method_name, read_peft_values
from adalora.errors import UserError
from adalora.validation import METHOD_RANGES, check_numbers, told
from loralib import ALLOCATIONS, SCORES

__all__ = ["MethodArguments"]

_LORA_NAMES = {"frd": "LoRA", "svd": "SVD-LoRA (fixed rank)", "dora": "DoRA"}
_START_NAMES = {"lora": "LoRA's start", "orthogonal": "orthonormal start", "pissa": "PiSSA"}
LORA_MODULES = "query,key,value,intermediate,layer.output,attention.output"


@dataclass
class MethodArguments:
    """How the model is adapted: LoRA, its SVD form, AdaLoRA, bottleneck adapters, BitFit.

    With none of them the whole model is fine-tuned, as in the original.
    """

    _argument_group_name: ClassVar[str] = "adaptation method"

    apply_lora: bool = field(default=False, metadata=told("Adapt with low-rank matrices."))
    lora_type: str = field(
        default="frd",
        metadata=told(
            "`frd`: plain LoRA, B·A; `svd`: AdaLoRA's form P·Λ·Q; `dora`: B·A and a norm "
            "for each output."
        ),
    )
    lora_module: str = field(
        default="query,value",
        metadata=told(
            f"Adapted matrices, comma-separated: any of {LORA_MODULES}, "
            "or re:PATTERN over module paths."
        ),
    )
    lora_alpha: int = field(
        default=16, metadata=told("Scale: the update is multiplied by lora_alpha / lora_r.")
    )
    lora_r: int | None = field(
        default=None, metadata=told("Rank of every adapted matrix at the start (init_rank).")
    )
    lora_dropout: float = field(
        default=0.0, metadata=told("Dropout on the input of the low-rank update.")
    )
    lora_init: str = field(
        default="gaussian",
        metadata=told(
            "Where the factors start: `gaussian` (as published), `lora` (svd: as plain LoRA, "
            "lora_B at zero and lora_E at one), `orthogonal` (orthonormal, so that the penalty "
            "starts at zero) or `pissa` (the base's principal part)."
        ),
    )
    lora_scaling: str = field(
        default="standard",
        metadata=told(
            "`standard`: lora_alpha / lora_r; `rank_stabilised`: lora_alpha / sqrt(lora_r) "
            "(rsLoRA)."
        ),
    )
    lora_plus_ratio: float = field(
        default=1.0,
        metadata=told(
            "LoRA+: learning rate of lora_B (with svd, of lora_E) over that of the rest, for "
            "example 16."
        ),
    )
    lora_path: str | None = field(
        default=None,
        metadata=told("Start from these LoRA weights: a run's model folder or a .bin file."),
    )
    apply_adapter: bool = field(default=False, metadata=told("Adapt with bottleneck adapters."))
    adapter_path: str | None = field(
        default=None, metadata=told("Start from these bottleneck adapter weights.")
    )
    adapter_type: str = field(default="houlsby", metadata=told("`houlsby` or `pfeiffer`."))
    adapter_size: int = field(default=64, metadata=told("Width of the bottleneck."))
    peft_config: str | None = field(
        default=None,
        metadata=told(
            "Train a method of PEFT instead, for comparison: a JSON file with peft_type and its "
            "arguments (examples/text-classification/peft/)."
        ),
    )
    apply_bitfit: bool = field(default=False, metadata=told("Train the biases of the base."))
    reg_loss_wgt: float = field(
        default=0.0,
        metadata=told(
            "Weight of the consistency loss between two dropout passes (classification only)."
        ),
    )
    masking_prob: float = field(
        default=0.0,
        metadata=told("Probability of masking a token in the second pass of --reg_loss_wgt."),
    )
    reg_orth_coef: float = field(
        default=0.0, metadata=told("Coefficient of the orthogonality penalty.")
    )
    apply_adalora: bool = field(
        default=False,
        metadata={
            "help": "Allocate a global budget of singular values (needs --apply_lora "
            "--lora_type svd). --apply_rankselector is the name in the original's MRPC script.",
            "aliases": ["--apply_rankselector"],
        },
    )
    prune_lora: bool = field(
        default=False,
        metadata=told(
            "Prune plain LoRA (--lora_type frd) by the same score and budget, a column of B with "
            "its row of A at a time (the paper's table 4); an ablation of --apply_adalora."
        ),
    )
    importance_score: str = field(
        default="uncertainty",
        metadata=told(
            "What the budget is allocated by: `uncertainty` (sensitivity times uncertainty, as "
            "published), `sensitivity` (without the uncertainty) or `magnitude` (of the singular "
            "value alone); the last two are the paper's table 4."
        ),
    )
    allocation: str = field(
        default="prune",
        metadata=told(
            "`prune`: ranks fall from --lora_r to --target_rank; `grow`: they start at 1 and grow "
            "to it, to at most --lora_r in one matrix (in the manner of IncreLoRA)."
        ),
    )
    target_rank: int = field(default=16, metadata=told("Average rank per matrix at the end."))
    target_total_rank: int | None = field(
        default=None,
        metadata=told("Triplets in the whole model at the end; overrides --target_rank."),
    )
    init_warmup: float = field(
        default=4500,
        metadata=told("Steps before the budget shrinks; below 1, a fraction of all steps."),
    )
    final_warmup: float = field(
        default=12000,
        metadata=told("Last steps with a fixed budget; below 1, a fraction of all steps."),
    )
    mask_interval: int = field(default=10, metadata=told("Steps between two allocations."))
    beta1: float = field(default=0.85, metadata=told("Average of the sensitivity."))
    beta2: float = field(default=0.85, metadata=told("Average of its uncertainty."))
    tb_writter_loginterval: int = field(
        default=500, metadata=told("Steps between TensorBoard records of ranks and penalty.")
    )

    def __post_init__(self) -> None:
        if self.lora_type not in LORA_LAYERS:
            raise UserError(f"--lora_type is {self.lora_type!r}; choose {', '.join(LORA_LAYERS)}.")
        if self.lora_init not in INITIALISATIONS:
            raise UserError(
                f"--lora_init is {self.lora_init!r}; choose {' or '.join(INITIALISATIONS)}."
            )
        if self.lora_init == "pissa" and self.allocates:
            flag = "--apply_adalora" if self.apply_adalora else "--prune_lora"
            raise UserError(
                f"--lora_init pissa and {flag} do not go together: the triplets would be "
                "the base's own principal ones, and pruning would cut them out of it."
            )
        if self.lora_init == "pissa" and self.lora_path:
            raise UserError(
                f"--lora_init pissa computes where to start from, and --lora_path {self.lora_path} "
                "says where; give one."
            )
        if self.lora_init == "lora" and self.lora_type == "svd" and self.lora_plus_ratio != 1:
            raise UserError(
                f"--lora_plus_ratio {self.lora_plus_ratio:g} raises the learning rate of lora_E, "
                "which --lora_init lora does not start at zero; leave one of the two out."
            )
        if self.lora_init != "gaussian" and not self.apply_lora:
            raise UserError(f"--lora_init {self.lora_init} needs --apply_lora.")
        if self.lora_scaling != "standard" and not self.apply_lora:
            raise UserError(f"--lora_scaling {self.lora_scaling} needs --apply_lora.")
        if self.lora_scaling not in ("standard", "rank_stabilised"):
            raise UserError(
                f"--lora_scaling is {self.lora_scaling!r}; choose standard or rank_stabilised."
            )
        if self.adapter_type not in ("houlsby", "pfeiffer"):
            raise UserError(f"--adapter_type is {self.adapter_type!r}; choose houlsby or pfeiffer.")
        if self.apply_adalora and not (self.apply_lora and self.lora_type == "svd"):
            raise UserError(
                "--apply_adalora needs --apply_lora --lora_type svd: it prunes singular values, "
                f"and here apply_lora is {self.apply_lora} and lora_type is {self.lora_type!r}. "
                "To prune plain LoRA, give --prune_lora instead."
            )
        self._check_variants()
        if self.apply_lora and (self.lora_r is None or self.lora_r < 1):
            raise UserError(
                f"--apply_lora needs --lora_r of at least 1, for example --lora_r 8; "
                f"got {self.lora_r}."
            )
        if not (self.lora_plus_ratio > 0 and math.isfinite(self.lora_plus_ratio)):
            raise UserError(f"--lora_plus_ratio is {self.lora_plus_ratio}; it must be above 0.")
        if self.lora_plus_ratio != 1 and not self.apply_lora:
            raise UserError(f"--lora_plus_ratio {self.lora_plus_ratio} needs --apply_lora.")
        if self.lora_path and not self.apply_lora:
            raise UserError(f"--lora_path {self.lora_path} needs --apply_lora.")
        if self.adapter_path and not self.apply_adapter:
            raise UserError(f"--adapter_path {self.adapter_path} needs --apply_adapter.")
        if self.reg_orth_coef and not self.apply_lora:
            raise UserError(f"--reg_orth_coef {self.reg_orth_coef} needs --apply_lora.")
        self._check_peft()
        if self.masking_prob and not self.reg_loss_wgt:
            raise UserError(
                f"--masking_prob {self.masking_prob} masks the second pass of the consistency "
                "loss and does nothing without --reg_loss_wgt above 0."
            )
        at_least: tuple[tuple[str, float, float], ...] = (
            ("adapter_size", self.adapter_size, 1),
            ("mask_interval", self.mask_interval, 1),
            ("tb_writter_loginterval", self.tb_writter_loginterval, 1),
            ("target_rank", self.target_rank, 0),
            ("init_warmup", self.init_warmup, 0),
            ("final_warmup", self.final_warmup, 0),
            ("reg_orth_coef", self.reg_orth_coef, 0),
            ("reg_loss_wgt", self.reg_loss_wgt, 0),
        )
        for name, value, least in at_least:
            if not value >= least:
                raise UserError(f"--{name} is {value}; it must be at least {least}.")
        for name, value in (
            ("lora_dropout", self.lora_dropout),
            ("masking_prob", self.masking_prob),
        ):
            if not 0 <= value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 0 and below 1.")
        check_numbers(self, METHOD_RANGES)

    def _check_variants(self) -> None:
        """Variants of the allocation, which do nothing where nothing is allocated."""
        if self.prune_lora and not (self.apply_lora and self.lora_type == "frd"):
            raise UserError(
                "--prune_lora needs --apply_lora --lora_type frd: it prunes plain LoRA, and here "
                f"apply_lora is {self.apply_lora} and lora_type is {self.lora_type!r}."
            )
        for name, value, known in (
            ("importance_score", self.importance_score, SCORES),
            ("allocation", self.allocation, ALLOCATIONS),
        ):
            if value not in known:
                raise UserError(f"--{name} is {value!r}; choose {' or '.join(known)}.")
            if value != known[0] and not self.allocates:
                raise UserError(
                    f"--{name} {value} does nothing without --apply_adalora or --prune_lora."
                )

    @property
    def allocates(self) -> bool:
        """Whether a budget of ranks is allocated over the matrices."""
        return self.apply_adalora or self.prune_lora

    def _check_peft(self) -> None:
        """PEFT's methods stand alone: their loss and their layers are PEFT's."""
        self.peft_values: dict[str, Any] | None = None
        if self.peft_config is None:
            return
        for name in ("apply_lora", "apply_adapter", "apply_bitfit", "reg_loss_wgt"):
            if getattr(self, name):
                raise UserError(
                    f"--peft_config {self.peft_config} and --{name} are two methods; give one."
                )
        self.peft_values = read_peft_values(self.peft_config)

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
        """The names in ``lora_module``, in the user's order.

        A ``re:PATTERN`` may hold commas, so it is taken whole.
        """
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
                grown = ", grown" if self.allocation == "grow" else ""
                usual = self.importance_score == SCORES[0]
                parts.append(name + grown + ("" if usual else f", by {self.importance_score}"))
            else:
                parts.append(_LORA_NAMES[self.lora_type])
        if self.apply_adapter:
            parts.append(f"{self.adapter_type.capitalize()} adapters")
        if self.apply_bitfit:
            parts.append("BitFit")
        name = " + ".join(parts) or "full fine-tuning"
        return f"{name} ({', '.join(self._options)})" if self._options else name

    @property
    def _options(self) -> list[str]:
        """What sets this run apart from the plain method, by the options' own names."""
        options = []
        if self.lora_init in _START_NAMES:
            options.append(_START_NAMES[self.lora_init])
        if self.lora_scaling == "rank_stabilised":
            options.append("rsLoRA")
        if self.lora_plus_ratio != 1:
            options.append(f"LoRA+ {self.lora_plus_ratio:g}")
        return options

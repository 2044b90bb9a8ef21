"""What a run is told: four dataclasses that check themselves, in the original's names.

The flags are those of the original ``run_glue.py`` (facts: QingruZhang/AdaLoRA,
NLU/examples/text-classification/run_glue.py and NLU/src/transformers/training_args.py) on top of
the installed ``transformers.TrainingArguments``. ``adalora.training.parser`` turns a command line
into them. Every mistake is a ``UserError`` that shows the value and what was expected.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
import transformers

from adalora.adapters.initialise import INITIALISATIONS
from adalora.adapters.lora import LORA_LAYERS
from adalora.adapters.peft_method import peft_method_name, read_peft_values
from adalora.errors import UserError
from adalora.sizes import check_numbers
from adalora.training.launch import (
    ADVICE,
    asks_for_fsdp,
    check_environment,
    check_job,
    refused_sharding,
)
from adalora.training.ranges import DATA_RANGES, METHOD_RANGES, TRAINING_RANGES
from loralib import ALLOCATIONS, SCORES

__all__ = [
    "AdaLoraTrainingArguments",
    "DataArguments",
    "MethodArguments",
    "ModelArguments",
]

logger = logging.getLogger(__name__)

_LORA_NAMES = {"frd": "LoRA", "svd": "SVD-LoRA (fixed rank)", "dora": "DoRA"}
_START_NAMES = {"lora": "LoRA's start", "orthogonal": "orthonormal start", "pissa": "PiSSA"}
LORA_MODULES = "query,key,value,intermediate,layer.output,attention.output"
BASE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class ModelArguments:
    """Which pretrained encoder to start from, and how it is loaded."""

    _argument_group_name: ClassVar[str] = "model"

    model_name_or_path: str = field(
        metadata=_help("Hub id, local folder, or `nano` for the built-in miniature DeBERTaV3.")
    )
    config_name: str | None = field(
        default=None, metadata=_help("Configuration, if not that of the model.")
    )
    tokenizer_name: str | None = field(
        default=None, metadata=_help("Tokenizer, if not that of the model.")
    )
    cache_dir: str | None = field(
        default=None, metadata=_help("Where files from the hub are kept.")
    )
    use_fast_tokenizer: bool = field(
        default=True, metadata=_help("Use the tokenizer of the `tokenizers` library.")
    )
    model_revision: str = field(
        default="main", metadata=_help("Branch, tag or commit of the model on the hub.")
    )
    use_auth_token: bool = field(
        default=False, metadata=_help("Send the hub token of `hf auth login` (private models).")
    )
    trust_remote_code: bool = field(
        default=False, metadata=_help("Allow a model that brings its own code; refused otherwise.")
    )
    base_dtype: str = field(
        default="float32",
        metadata=_help("Type of the frozen weights: float32, bfloat16 or float16."),
    )
    position_query_bypass: bool = field(
        default=False,
        metadata=_help(
            "DeBERTa: compute the positional query without the adapter, as the original did; "
            "such a model cannot be merged exactly."
        ),
    )
    unpad: bool = field(
        default=True,
        metadata=_help(
            "DeBERTaV3: run the encoder on the real tokens only, which changes no result but by "
            "rounding; --no_unpad computes padding as well, as transformers does."
        ),
    )
    preset: str | None = field(
        default=None,
        metadata=_help(
            "Flags of a row of the paper's table 1, such as rte/adalora-0.3M; flags given beside "
            "it win. `adalora presets` lists them."
        ),
    )

    def __post_init__(self) -> None:
        if self.base_dtype not in BASE_DTYPES:
            raise UserError(
                f"--base_dtype is {self.base_dtype!r}; choose one of {', '.join(BASE_DTYPES)}."
            )

    @property
    def dtype(self) -> torch.dtype:
        """The type the base weights are loaded in."""
        return BASE_DTYPES[self.base_dtype]


@dataclass
class MethodArguments:
    """How the model is adapted: LoRA, its SVD form, AdaLoRA, bottleneck adapters, BitFit.

    With none of them the whole model is fine-tuned, as in the original.
    """

    _argument_group_name: ClassVar[str] = "adaptation method"

    apply_lora: bool = field(default=False, metadata=_help("Adapt with low-rank matrices."))
    lora_type: str = field(
        default="frd",
        metadata=_help(
            "`frd`: plain LoRA, B·A; `svd`: AdaLoRA's form P·Λ·Q; `dora`: B·A and a norm "
            "for each output."
        ),
    )
    lora_module: str = field(
        default="query,value",
        metadata=_help(
            f"Adapted matrices, comma-separated: any of {LORA_MODULES}, "
            "or re:PATTERN over module paths."
        ),
    )
    lora_alpha: int = field(
        default=16, metadata=_help("Scale: the update is multiplied by lora_alpha / lora_r.")
    )
    lora_r: int | None = field(
        default=None, metadata=_help("Rank of every adapted matrix at the start (init_rank).")
    )
    lora_dropout: float = field(
        default=0.0, metadata=_help("Dropout on the input of the low-rank update.")
    )
    lora_init: str = field(
        default="gaussian",
        metadata=_help(
            "Where the factors start: `gaussian` (as published), `lora` (svd: as plain LoRA, "
            "lora_B at zero and lora_E at one), `orthogonal` (orthonormal, so that the penalty "
            "starts at zero) or `pissa` (the base's principal part)."
        ),
    )
    lora_scaling: str = field(
        default="standard",
        metadata=_help(
            "`standard`: lora_alpha / lora_r; `rank_stabilised`: lora_alpha / sqrt(lora_r) "
            "(rsLoRA)."
        ),
    )
    lora_plus_ratio: float = field(
        default=1.0,
        metadata=_help(
            "LoRA+: learning rate of lora_B (with svd, of lora_E) over that of the rest, for "
            "example 16."
        ),
    )
    lora_path: str | None = field(
        default=None,
        metadata=_help("Start from these LoRA weights: a run's model folder or a .bin file."),
    )
    apply_adapter: bool = field(default=False, metadata=_help("Adapt with bottleneck adapters."))
    adapter_path: str | None = field(
        default=None, metadata=_help("Start from these bottleneck adapter weights.")
    )
    adapter_type: str = field(default="houlsby", metadata=_help("`houlsby` or `pfeiffer`."))
    adapter_size: int = field(default=64, metadata=_help("Width of the bottleneck."))
    peft_config: str | None = field(
        default=None,
        metadata=_help(
            "Train a method of PEFT instead, for comparison: a JSON file with peft_type and its "
            "arguments (examples/text-classification/peft/)."
        ),
    )
    apply_bitfit: bool = field(default=False, metadata=_help("Train the biases of the base."))
    reg_loss_wgt: float = field(
        default=0.0,
        metadata=_help(
            "Weight of the consistency loss between two dropout passes (classification only)."
        ),
    )
    masking_prob: float = field(
        default=0.0,
        metadata=_help("Probability of masking a token in the second pass of --reg_loss_wgt."),
    )
    reg_orth_coef: float = field(
        default=0.0, metadata=_help("Coefficient of the orthogonality penalty.")
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
        metadata=_help(
            "Prune plain LoRA (--lora_type frd) by the same score and budget, a column of B with "
            "its row of A at a time (the paper's table 4); an ablation of --apply_adalora."
        ),
    )
    importance_score: str = field(
        default="uncertainty",
        metadata=_help(
            "What the budget is allocated by: `uncertainty` (sensitivity times uncertainty, as "
            "published), `sensitivity` (without the uncertainty) or `magnitude` (of the singular "
            "value alone); the last two are the paper's table 4."
        ),
    )
    allocation: str = field(
        default="prune",
        metadata=_help(
            "`prune`: ranks fall from --lora_r to --target_rank; `grow`: they start at 1 and grow "
            "to it, to at most --lora_r in one matrix (in the manner of IncreLoRA)."
        ),
    )
    target_rank: int = field(default=16, metadata=_help("Average rank per matrix at the end."))
    target_total_rank: int | None = field(
        default=None,
        metadata=_help("Triplets in the whole model at the end; overrides --target_rank."),
    )
    init_warmup: float = field(
        default=4500,
        metadata=_help("Steps before the budget shrinks; below 1, a fraction of all steps."),
    )
    final_warmup: float = field(
        default=12000,
        metadata=_help("Last steps with a fixed budget; below 1, a fraction of all steps."),
    )
    mask_interval: int = field(default=10, metadata=_help("Steps between two allocations."))
    beta1: float = field(default=0.85, metadata=_help("Average of the sensitivity."))
    beta2: float = field(default=0.85, metadata=_help("Average of its uncertainty."))
    tb_writter_loginterval: int = field(
        default=500, metadata=_help("Steps between TensorBoard records of ranks and penalty.")
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


@dataclass
class DataArguments:
    """Which examples, and how they become tokens."""

    _argument_group_name: ClassVar[str] = "data"

    task_name: str | None = field(
        default=None,
        metadata=_help(
            "GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, ax; "
            "`mini-` before it takes the built-in miniature."
        ),
    )
    data_dir: str | None = field(
        default=None, metadata=_help("Folder of the official GLUE download (TSV files).")
    )
    train_file: str | None = field(
        default=None, metadata=_help("Training data: CSV, TSV, JSON, JSON lines or Parquet.")
    )
    validation_file: str | None = field(default=None, metadata=_help("Validation data, likewise."))
    test_file: str | None = field(default=None, metadata=_help("Test data, likewise."))
    max_seq_length: int = field(
        default=128, metadata=_help("Tokens after which a text is cut off.")
    )
    overwrite_cache: bool = field(
        default=False, metadata=_help("Tokenise again even if a cached result exists.")
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata=_help(
            "Pad every text to max_seq_length. The original's default; the results are the same "
            "to rounding without it, several times faster."
        ),
    )
    max_train_samples: int | None = field(
        default=None, metadata=_help("Use only the first N training examples.")
    )
    max_val_samples: int | None = field(
        default=None, metadata=_help("Use only the first N validation examples.")
    )
    max_test_samples: int | None = field(
        default=None, metadata=_help("Use only the first N test examples.")
    )

    def __post_init__(self) -> None:
        if self.max_seq_length < 4:
            raise UserError(f"--max_seq_length is {self.max_seq_length}; it must be at least 4.")
        check_numbers(self, DATA_RANGES)
        for name in ("max_train_samples", "max_val_samples", "max_test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")
        if self.task_name is None and not (self.train_file or self.validation_file):
            raise UserError(
                "No data was named: give --task_name (a GLUE task, or mini-sst2 and so on for the "
                "built-in miniature), or your own --train_file and --validation_file."
            )


@dataclass
class AdaLoraTrainingArguments(transformers.TrainingArguments):
    """The installed ``TrainingArguments`` with the original's flags that it no longer has.

    Departures from both: results go to ``root_output_dir`` (``model/``, ``log/``, ``log.txt``);
    TensorBoard is on unless ``--report_to none``; without an accelerator the CPU is chosen by
    itself, which two launched processes need to form one job (they would train two models
    otherwise); fp16 without a GPU is an error instead of being ignored.
    """

    _argument_group_name: ClassVar[str] = "training"

    root_output_dir: str | None = field(
        default=None,
        metadata=_help(
            "Folder of the run: model/ (artefact and checkpoints), log/ (TensorBoard), log.txt "
            "and results. --output_dir is taken for it when this is not given."
        ),
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata=_help(
            "Start again where an earlier run left files; they are replaced. With "
            "--resume_from_checkpoint the run resumes all the same, and nothing is removed."
        ),
    )
    force_resume: bool = field(
        default=False,
        metadata=_help(
            "Resume although flags that decide the course of the run were changed; what cannot "
            "fit (other ranks or matrices, another optimizer) is refused all the same."
        ),
    )
    evaluation_strategy: str | None = field(
        default=None, metadata=_help("Old name of --eval_strategy: no, steps or epoch.")
    )
    warmup_ratio: float | None = field(
        default=None, metadata=_help("Learning-rate warm-up as a fraction of all steps.")
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata=_help(
            "Stop after this many evaluations in a row without a better one; under AdaLoRA those "
            "at the final budget count. Needs --eval_strategy and --load_best_model_at_end."
        ),
    )
    cls_dropout: float | None = field(
        default=None, metadata=_help("Dropout before the classifier; default: the model's own.")
    )
    no_cuda: bool = field(default=False, metadata=_help("Old name of --use_cpu."))
    use_deterministic_algorithms: bool = field(
        default=False,
        metadata=_help("Only deterministic kernels; an operation without one is an error."),
    )
    per_gpu_train_batch_size: int | None = field(
        default=None, metadata=_help("Old name of --per_device_train_batch_size.")
    )
    per_gpu_eval_batch_size: int | None = field(
        default=None, metadata=_help("Old name of --per_device_eval_batch_size.")
    )
    adafactor: bool = field(default=False, metadata=_help("Old name of --optim adafactor."))
    group_by_length: bool = field(
        default=False, metadata=_help("Old name of --train_sampling_strategy group_by_length.")
    )
    shard_base: bool = field(
        default=False,
        metadata=_help(
            "Divide the frozen base among the processes (FSDP2) instead of keeping it whole in "
            "each; results and checkpoints are the same. --fsdp is taken for it."
        ),
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the parser reads the order
        default="tensorboard",
        metadata=_help("Where logs go: tensorboard, wandb, ..., all or none."),
    )

    def __post_init__(self) -> None:
        # As told, before the values below are derived from one another: a run's record shows these.
        self.given = {field.name: getattr(self, field.name) for field in fields(self)}
        root = self.root_output_dir or self.output_dir or os.path.join("output", "run")
        self.root_output_dir = os.path.expanduser(root)
        self.output_dir = os.path.join(self.root_output_dir, "model")
        if self.run_name is None:
            self.run_name = self.root_output_dir
        self._take_old_names()
        self._choose_device()
        self._choose_sharding()
        self._check()
        check_environment(os.environ, local_rank=self.local_rank)
        try:
            super().__post_init__()
        except UserError:
            raise
        except (ValueError, TypeError) as error:
            raise UserError(f"The training flags do not fit together: {error}") from error
        self._check_checkpointing()
        self._check_optimizer()
        check_job(os.environ, self.distributed_state)
        self._check_sharding()
        if self.n_gpu > 1:
            logger.warning(
                "%d GPUs are visible and one is used; start %s to use more.", self.n_gpu, ADVICE
            )
            self._n_gpu = 1

    def _take_old_names(self) -> None:
        """Carry the values of flags that transformers renamed or removed to where they live now."""
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.warmup_ratio is not None:
            if not 0 <= self.warmup_ratio < 1:
                raise UserError(
                    f"--warmup_ratio is {self.warmup_ratio}; it must be at least 0 and below 1."
                )
            # transformers 5 reads a warm-up below 1 as a fraction; explicit steps win, as in 4.4.
            if not self.warmup_steps:
                self.warmup_steps = self.warmup_ratio
        if self.per_gpu_train_batch_size is not None:
            self.per_device_train_batch_size = self.per_gpu_train_batch_size
        if self.per_gpu_eval_batch_size is not None:
            self.per_device_eval_batch_size = self.per_gpu_eval_batch_size
        if self.adafactor:
            self.optim = "adafactor"
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"

    def _choose_device(self) -> None:
        accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
        self.use_cpu = self.use_cpu or self.no_cuda or not accelerator
        if self.use_cpu:
            self.dataloader_pin_memory = False
            if self.fp16:
                raise UserError(
                    "--fp16 needs a GPU and this run is on the CPU; use --bf16 there, or no flag."
                )

    def _check_checkpointing(self) -> None:
        """Under two names, the second of which transformers 5.23 brought."""
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
            options = getattr(self, name, None)
            if isinstance(options, dict) and options.get("use_reentrant"):
                raise UserError(
                    f"--{name} asks for use_reentrant, which cannot go back through what all "
                    "layers share (DeBERTa's table of positions); leave it out."
                )

    def _check_optimizer(self) -> None:
        try:
            transformers.Trainer.get_optimizer_cls_and_kwargs(self)
        except ImportError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--optim {self.optimizer_name} needs a package that is not here ({reason}); "
                "install it, or choose adamw_torch_fused, adamw_torch, adafactor or sgd."
            ) from error
        except ValueError as error:
            # Some want the model, which is not there yet.
            if "model" not in str(error):
                raise UserError(
                    f"--optim {self.optimizer_name} cannot be used: {error}."
                ) from error

    @property
    def optimizer_name(self) -> str:
        """The optimizer as ``--optim`` names it."""
        return str(getattr(self.optim, "value", self.optim))

    @property
    def keeps_gradients(self) -> bool:
        """Whether the optimizer leaves the step's gradients there, as AdaLoRA needs them."""
        return not self.optimizer_name.endswith(("lomo", "layerwise"))

    def _choose_sharding(self) -> None:
        """Take what asks for FSDP as ``shard_base``; refuse what would divide what trains."""
        reason = refused_sharding(os.environ, self)
        if reason is not None:
            raise UserError(reason)
        if self.fsdp or asks_for_fsdp(os.environ):
            self.shard_base, self.fsdp = True, None
            # accelerate would divide the adapters as well, on which the allocator decides.
            os.environ.pop("ACCELERATE_USE_FSDP", None)

    def _check_sharding(self) -> None:
        if not self.shard_base:
            return
        if self.world_size == 1:
            raise UserError(
                "--shard_base divides the frozen base among processes and this run has one; start "
                f"several with {ADVICE}, or leave the flag out."
            )
        for name in ("torch_compile", "fp16_full_eval", "bf16_full_eval", "auto_find_batch_size"):
            if getattr(self, name):
                raise UserError(
                    f"--shard_base does not go with --{name}, which was not tested with a divided "
                    "base; leave one of them out."
                )

    def _check(self) -> None:
        for name, value in (
            ("eval_strategy", self.eval_strategy),
            ("logging_strategy", self.logging_strategy),
        ):
            if str(getattr(value, "value", value)) not in ("no", "steps", "epoch"):
                raise UserError(f"--{name} is {value!r}; choose no, steps or epoch.")
        if self.cls_dropout is not None and not 0 <= self.cls_dropout < 1:
            raise UserError(
                f"--cls_dropout is {self.cls_dropout}; it must be at least 0 and below 1."
            )
        patience = self.early_stopping_patience
        if patience is not None:
            if patience < 1:
                raise UserError(f"--early_stopping_patience is {patience}; it must be at least 1.")
            strategy = str(getattr(self.eval_strategy, "value", self.eval_strategy))
            if strategy == "no" or not self.load_best_model_at_end:
                raise UserError(
                    f"--early_stopping_patience {patience} compares evaluations and ends with the "
                    "best model, so it needs --eval_strategy epoch --save_strategy epoch "
                    "--load_best_model_at_end (or steps in both places)."
                )
        positive = ("per_device_train_batch_size", "per_device_eval_batch_size")
        for name in (*positive, "gradient_accumulation_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}; it must be at least 1.")
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise UserError(
                f"--num_train_epochs is {self.num_train_epochs}; it must be above 0 "
                "where --max_steps is not given."
            )
        check_numbers(self, TRAINING_RANGES)

    @property
    def uses_tensorboard(self) -> bool:
        """Whether records go to TensorBoard."""
        return "tensorboard" in (self.report_to or [])

    @property
    def log_dir(self) -> str:
        """Folder of the TensorBoard records."""
        return os.path.join(str(self.root_output_dir), "log")

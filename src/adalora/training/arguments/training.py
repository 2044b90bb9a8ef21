"""How a run trains: the installed ``TrainingArguments``, the original's flags, and their checks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
import transformers

from adalora.errors import UserError
from adalora.glue.metrics import LOWER_IS_BETTER
from adalora.runtime.launch import (
    ADVICE,
    asks_for_fsdp,
    check_environment,
    check_job,
    refused_sharding,
)
from adalora.training.arguments.inherited import (
    check_checkpointing,
    check_compilation,
    check_optimizer,
    check_refused,
    check_reporters,
    check_scheduler,
)
from adalora.training.arguments.inputs import flag
from adalora.validation import COUNT, FRACTION, NOT_NEGATIVE, Interval, check_flags

logger = logging.getLogger(__name__)

_SEED = Interval(0, 2**32 - 1)
_RATE = Interval(0, 1e6)
_BATCH = Interval(1, 1e6)
_STEPS = Interval(0, 1e9, above=True)
_WHEN = ("no", "steps", "epoch")
# Flag -> what it may be.
_RULES: dict[str, Interval | Sequence[str]] = {
    "learning_rate": _RATE,
    "weight_decay": _RATE,
    "num_train_epochs": _RATE,
    "max_steps": Interval(-1, 1e9),
    "warmup_ratio": FRACTION,
    "warmup_steps": NOT_NEGATIVE,
    "per_device_train_batch_size": _BATCH,
    "per_device_eval_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "max_grad_norm": NOT_NEGATIVE,
    "adam_beta1": FRACTION,
    "adam_beta2": FRACTION,
    "adam_epsilon": Interval(0, 1),
    "label_smoothing_factor": FRACTION,
    "neftune_noise_alpha": NOT_NEGATIVE,
    "cls_dropout": FRACTION,
    "eval_strategy": _WHEN,
    "logging_strategy": _WHEN,
    "logging_steps": _STEPS,
    "eval_steps": NOT_NEGATIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_accumulation_steps": COUNT,
    "save_steps": _STEPS,
    "save_total_limit": COUNT,
    "torch_empty_cache_steps": COUNT,
    "early_stopping_patience": COUNT,
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": Interval(0, 1_000),
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
}

#: Of a run between two log records, where the user does not say.
LOGGED_FRACTION = 0.01


@dataclass
class AdaLoraTrainingArguments(transformers.TrainingArguments):
    """The installed ``TrainingArguments`` with the original's flags that it no longer has.

    Departures from both: results go to ``root_output_dir`` (``model/``, ``log/``, ``log.txt``);
    TensorBoard is on unless ``--report_to none``; without an accelerator the CPU is chosen by
    itself, which two launched processes need to form one job (they would train two models
    otherwise); fp16 without a GPU is an error instead of being ignored.
    """

    _argument_group_name: ClassVar[str] = "training"

    root_output_dir: str | None = flag(
        None,
        "Folder of the run: model/ (artefact and checkpoints), log/ (TensorBoard), log.txt "
        "and results. --output_dir is taken for it when this is not given.",
    )
    overwrite_output_dir: bool = flag(
        False,
        "Start again where an earlier run left files; they are replaced. With "
        "--resume_from_checkpoint the run resumes all the same, and nothing is removed.",
    )
    force_resume: bool = flag(
        False,
        "Resume although flags that decide the result of the run were changed; what cannot "
        "fit (other ranks or matrices, another optimizer) is refused all the same.",
    )
    logging_steps: float | None = flag(  # type: ignore[assignment]
        None,
        "Steps between log records; below 1, a fraction of all steps. Default: 50 to 100 records "
        "over the run.",
    )
    evaluation_strategy: str | None = flag(None, "Old name of --eval_strategy: no, steps or epoch.")
    warmup_ratio: float | None = flag(None, "Learning-rate warm-up as a fraction of all steps.")
    early_stopping_patience: int | None = flag(
        None,
        "Stop after this many evaluations in a row without a better one; under AdaLoRA those "
        "at the final budget count. Needs --eval_strategy and --load_best_model_at_end.",
    )
    cls_dropout: float | None = flag(
        None, "Dropout before the classifier; default: the model's own."
    )
    no_cuda: bool = flag(False, "Old name of --use_cpu.")
    use_deterministic_algorithms: bool = flag(
        False, "Only deterministic kernels; an operation without one is an error."
    )
    per_gpu_train_batch_size: int | None = flag(None, "Old name of --per_device_train_batch_size.")
    per_gpu_eval_batch_size: int | None = flag(None, "Old name of --per_device_eval_batch_size.")
    adafactor: bool = flag(False, "Old name of --optim adafactor.")
    group_by_length: bool = flag(False, "Old name of --train_sampling_strategy group_by_length.")
    shard_base: bool = flag(
        False,
        "Shard the frozen base over the processes (FSDP2) instead of keeping it whole in "
        "each; results and checkpoints are the same. --fsdp is taken for it.",
    )
    report_to: None | str | list[str] = flag(  # noqa: RUF009, RUF036 - the parser reads the order
        "tensorboard", "Where logs go: tensorboard, wandb, ..., all or none."
    )

    def __post_init__(self) -> None:
        # Before the values below are derived from one another: a run's record shows these.
        self.given = {field.name: getattr(self, field.name) for field in fields(self)}
        root = self.root_output_dir or self.output_dir or os.path.join("output", "run")
        self.root_output_dir = os.path.expanduser(root)
        self.output_dir = os.path.join(self.root_output_dir, "model")
        if self.run_name is None:
            self.run_name = self.root_output_dir
        check_refused(self)
        self._take_old_names()
        self._choose_logging()
        self._choose_direction()
        self._choose_device()
        self._choose_sharding()
        self._check()
        check_reporters(self)
        check_compilation(self)
        check_environment(os.environ, local_rank=self.local_rank)
        try:
            super().__post_init__()
        except UserError:
            raise
        except Exception as error:  # what reads a flag's file or object raises its own kind
            raise UserError(f"The training flags do not fit together: {error}") from error
        check_checkpointing(self)
        check_optimizer(self)
        check_scheduler(self)
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
        # transformers 5 reads a warm-up below 1 as a fraction; explicit steps win, as in 4.4.
        if self.warmup_ratio is not None and not self.warmup_steps:
            self.warmup_steps = self.warmup_ratio
        for use in ("train", "eval"):
            if (size := getattr(self, f"per_gpu_{use}_batch_size")) is not None:
                setattr(self, f"per_device_{use}_batch_size", size)
        if self.adafactor:
            self.optim = "adafactor"
        if self.group_by_length:
            self.train_sampling_strategy = "group_by_length"

    def _choose_logging(self) -> None:
        """Let log records follow the length of the run where no number of steps is given."""
        if self.logging_steps not in (None, LOGGED_FRACTION):
            return
        # The Trainer rounds the steps up, so that there are from 50 to 100 in a run of 50 or more.
        self.logging_steps = LOGGED_FRACTION
        if self.eval_steps is None:
            # transformers' own default, which would follow logging_steps.
            self.eval_steps = 500

    def _choose_direction(self) -> None:
        """transformers takes more for better of everything but a loss."""
        name = (self.metric_for_best_model or "").removeprefix("eval_")
        if self.greater_is_better is None and name in LOWER_IS_BETTER:
            self.greater_is_better = False

    def _choose_device(self) -> None:
        accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
        self.use_cpu = self.use_cpu or self.no_cuda or not accelerator
        if self.use_cpu:
            self.dataloader_pin_memory = False
            if self.fp16:
                raise UserError(
                    "--fp16 needs a GPU and this run is on the CPU; use --bf16 there, or no flag."
                )

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
        if (reason := refused_sharding(os.environ, self)) is not None:
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
                "--shard_base shards the frozen base over processes and this run has one; start "
                f"several with {ADVICE}, or leave the flag out."
            )
        for name in ("torch_compile", "fp16_full_eval", "bf16_full_eval", "auto_find_batch_size"):
            if getattr(self, name):
                raise UserError(
                    f"--shard_base does not go with --{name}, which was not tested with a sharded "
                    "base; leave one of them out."
                )

    def _check(self) -> None:
        check_flags(self, _RULES)
        patience = self.early_stopping_patience
        strategy = getattr(self.eval_strategy, "value", self.eval_strategy)
        if patience is not None and (strategy == "no" or not self.load_best_model_at_end):
            raise UserError(
                f"--early_stopping_patience {patience} compares evaluations and ends with the "
                "best model, so it needs --eval_strategy epoch --save_strategy epoch "
                "--load_best_model_at_end (or steps in both places)."
            )
        best = self.load_best_model_at_end or self.save_strategy == "best"
        if best and strategy == "no":
            flag = (
                "--load_best_model_at_end"
                if self.load_best_model_at_end
                else "--save_strategy best"
            )
            raise UserError(
                f"{flag} compares evaluations, so it needs --eval_strategy steps or epoch."
            )
        if self.save_strategy == "best" and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.ddp_backend and int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise UserError(
                f"--ddp_backend {self.ddp_backend} connects several processes and this run has "
                f"one; start several with {ADVICE}, or leave the flag out."
            )
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            if getattr(self, name) and not self.dataloader_num_workers:
                raise UserError(f"--{name} needs --dataloader_num_workers above 0.")
        if self.max_steps <= 0 and not self.num_train_epochs > 0:
            raise UserError(
                f"--num_train_epochs is {self.num_train_epochs}; it must be above 0 "
                "where --max_steps is not given."
            )

    @property
    def uses_tensorboard(self) -> bool:
        """Whether records go to TensorBoard."""
        return "tensorboard" in (self.report_to or [])

    @property
    def log_dir(self) -> str:
        """Folder of the TensorBoard records."""
        return os.path.join(str(self.root_output_dir), "log")

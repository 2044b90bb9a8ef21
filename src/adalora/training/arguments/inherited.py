"""What the installed ``TrainingArguments`` offer that a run cannot use, refused at once.

Each of these would otherwise end in a traceback, many of them after the training; or do nothing,
or something else than it says.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers
from accelerate.utils import DynamoBackend  # type: ignore[import-untyped]
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from adalora.errors import UserError
from adalora.storage.files import listed

_SCORES_NEED_ALL = (
    "the scores of a run are of all its predictions, in the order of the data; leave it out"
)
_NO_UPLOAD = (
    "a run uploads nothing, as what the Trainer would send is its checkpoints; upload the finished "
    "artefact: hf upload NAME OUTPUT/model"
)
_ONE_LAUNCHER = "accelerate launch has it in its own configuration, and --shard_base divides a base"
#: Flag -> (values that it may have beside its default, why it is refused otherwise).
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "prediction_loss_only": ((), _SCORES_NEED_ALL),
    "batch_eval_metrics": ((), _SCORES_NEED_ALL),
    "eval_do_concat_batches": ((), _SCORES_NEED_ALL),
    "eval_use_gather_object": ((), "predictions are tensors, which are gathered without it"),
    "include_for_metrics": ((), "no metric here reads anything but predictions and labels"),
    "label_names": ((["labels"],), "the labels are 'labels'; --label_column names your column"),
    "remove_unused_columns": ((), "the encoder takes tokens alone"),
    "use_liger_kernel": ((), "Liger has no kernels for encoders with a classifier; leave it out"),
    "liger_kernel_config": ((), "Liger has no kernels for encoders with a classifier"),
    "enable_jit_checkpoint": (
        (),
        "a run writes a checkpoint on SIGTERM and SIGINT by itself; leave it out",
    ),
    "parallelism_config": ((), _ONE_LAUNCHER),
    "length_column_name": ((), "lengths are those of the tokens; leave it out"),
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
            *("hub_always_push", "hub_revision"),
        ),
        ((), _NO_UPLOAD),
    ),
}


def check_refused(training: transformers.TrainingArguments) -> None:
    """Refuse what no run can use; ``training`` before its values are derived from one another.

    Raises:
        UserError: naming the first.
    """
    fields = {one.name: one for one in transformers.TrainingArguments.__dataclass_fields__.values()}
    for name, (allowed, why) in _REFUSED.items():
        if name not in fields:
            continue
        value, default = getattr(training, name), _default(fields[name])
        if value in (default, *allowed) or getattr(value, "value", value) == default:
            continue
        given = f"no_{name}" if default is True else name
        said = "" if isinstance(value, bool) else f" {' '.join(map(str, _listed(value)))}"
        raise UserError(f"--{given}{said} is refused: {why}.")


def _default(field: Any) -> Any:
    value = field.default if not callable(field.default_factory) else field.default_factory()
    return getattr(value, "value", value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [getattr(value, "value", value)]


def check_reporters(training: transformers.TrainingArguments) -> None:
    """Refuse reporters that transformers does not know, or whose package is not installed."""
    if training.report_to in (None, "all", "none", ["all"], ["none"]):
        return
    here = get_available_reporting_integrations()
    for name in _listed(training.report_to):
        if name in here:
            continue
        known = f"choose {listed([*here, 'none'])}"
        if name in INTEGRATION_TO_CALLBACK:
            raise UserError(f"--report_to {name} needs a package that is not here; {known}.")
        raise UserError(f"--report_to {name!r} is unknown; {known}.")


def check_scheduler(training: transformers.TrainingArguments) -> None:
    """Refuse a learning-rate schedule that cannot be made of its arguments.

    It is made, and followed to its end, on one number, for as many steps as ``--max_steps`` says.
    """
    options = {} if training.lr_scheduler_kwargs is None else training.lr_scheduler_kwargs
    given = f"--lr_scheduler_type {_listed(training.lr_scheduler_type)[0]}"
    if training.lr_scheduler_kwargs is not None:
        given += f" --lr_scheduler_kwargs '{training.lr_scheduler_kwargs}'"
    steps = min(training.max_steps, 1000) if training.max_steps > 0 else 1000
    try:
        if not isinstance(options, dict):
            raise TypeError('--lr_scheduler_kwargs is a JSON object, such as {"min_lr_rate": 0.1}')
        number = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([number], lr=training.learning_rate)
        schedule = transformers.get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=training.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(options),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                for step in (1, steps // 2, steps - 1, steps):
                    schedule.step(step)
            else:
                schedule.step(1.0)
    except Exception as error:  # each schedule raises its own kind
        reason = " ".join(str(error).split()).replace("get_", "").rstrip(".")
        raise UserError(
            f"{given} cannot be made: {reason}. Its arguments are those of --lr_scheduler_kwargs "
            "(transformers, 'Schedules'); linear, cosine, constant and others need none."
        ) from error


def check_compilation(training: transformers.TrainingArguments) -> None:
    """Refuse a backend or a mode that ``torch.compile`` would meet in the first step."""
    backends = [one.value.lower() for one in DynamoBackend if one is not DynamoBackend.NO]
    backend, mode = training.torch_compile_backend, training.torch_compile_mode
    if backend is not None and backend.lower() not in backends:
        raise UserError(
            f"--torch_compile_backend {backend!r} is none; choose from {', '.join(backends)}."
        )
    if mode is not None and mode not in _COMPILE_MODES:
        raise UserError(
            f"--torch_compile_mode {mode!r} is none; choose from {', '.join(_COMPILE_MODES)}."
        )


_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def check_optimizer(training: Any) -> None:
    """Refuse an optimizer whose package is not installed, or that its arguments do not fit."""
    try:
        transformers.Trainer.get_optimizer_cls_and_kwargs(training)
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--optim {training.optimizer_name} needs a package that is not here ({reason}); "
            "install it, or choose adamw_torch_fused, adamw_torch, adafactor or sgd."
        ) from error
    except ValueError as error:
        # Some want the model, which is not there yet.
        if "model" in str(error):
            return
        reason = str(error)
        if "unpack" in reason:
            reason = f"--optim_args {training.optim_args} is not NAME=VALUE,NAME=VALUE"
        raise UserError(f"--optim {training.optimizer_name} cannot be used: {reason}.") from error


def check_checkpointing(training: transformers.TrainingArguments) -> None:
    """Refuse gradient checkpointing of the kind that cannot go back through shared tensors."""
    # Under two names, the second of which transformers 5.23 brought.
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        options = getattr(training, name, None)
        if options is not None and not isinstance(options, dict):
            raise UserError(f"--{name} is {options!r}, and has to be a JSON object.")
        if options and set(options) - _CHECKPOINTING:
            raise UserError(
                f"--{name} {options}: there are {listed(sorted(_CHECKPOINTING))} alone."
            )
        if options and options.get("use_reentrant"):
            raise UserError(
                f"--{name} asks for use_reentrant, which cannot go back through what all "
                "layers share (DeBERTa's table of positions); leave it out."
            )


_CHECKPOINTING = frozenset({"use_reentrant", "preserve_rng_state", "determinism_check", "debug"})

"""Training: arguments, the method over a model, the Trainer subclass, and a run's results."""

from __future__ import annotations

from adalora.runtime.failures import report_as_user_error
from adalora.runtime.launch import leave_job
from adalora.runtime.memory import keep_freed_memory
from adalora.runtime.signals import StopOnSignal
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.arguments.data import DataArguments
from adalora.training.arguments.method import MethodArguments
from adalora.training.arguments.model import ModelArguments
from adalora.training.arguments.parser import RunArguments, parse_arguments
from adalora.training.arguments.training import AdaLoraTrainingArguments
from adalora.training.build import (
    adapt,
    build_adaptation,
    build_model,
    build_tokenizer,
    count_steps,
    data_source,
    seed_everything,
    settings_of,
    summary_writer,
)
from adalora.training.callbacks import AdaLoraCallback
from adalora.training.checkpointing.settings import course_settings
from adalora.training.checks import check_combination, check_schedule
from adalora.training.folders import (
    clear_earlier_run,
    configure_logging,
    find_checkpoint,
    hold_folder,
)
from adalora.training.run import Run
from adalora.training.task_metrics import TaskMetrics
from adalora.training.tokenise import build_collator, tokenise
from adalora.training.trainer import AdaLoraTrainer

__all__ = [
    "AdaLora",
    "AdaLoraCallback",
    "AdaLoraSettings",
    "AdaLoraTrainer",
    "AdaLoraTrainingArguments",
    "DataArguments",
    "MethodArguments",
    "ModelArguments",
    "Run",
    "RunArguments",
    "StopOnSignal",
    "TaskMetrics",
    "adapt",
    "build_adaptation",
    "build_collator",
    "build_model",
    "build_tokenizer",
    "check_combination",
    "check_schedule",
    "clear_earlier_run",
    "configure_logging",
    "count_steps",
    "course_settings",
    "data_source",
    "find_checkpoint",
    "hold_folder",
    "keep_freed_memory",
    "leave_job",
    "parse_arguments",
    "report_as_user_error",
    "seed_everything",
    "settings_of",
    "summary_writer",
    "tokenise",
]

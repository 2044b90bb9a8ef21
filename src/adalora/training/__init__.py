"""Training: arguments, the method over a model, the Trainer subclass, and a run's results."""

from __future__ import annotations

from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.arguments import (
    AdaLoraTrainingArguments,
    DataArguments,
    MethodArguments,
    ModelArguments,
)
from adalora.training.build import (
    adapt,
    build_adaptation,
    build_model,
    build_tokenizer,
    settings_of,
)
from adalora.training.callback import AdaLoraCallback
from adalora.training.combinations import check_combination
from adalora.training.course import course_settings
from adalora.training.faults import told_in_a_sentence
from adalora.training.folders import (
    clear_earlier_run,
    configure_logging,
    find_checkpoint,
    hold_folder,
)
from adalora.training.freed_memory import keep_freed_memory
from adalora.training.interruption import StopOnSignal
from adalora.training.launch import leave_job
from adalora.training.parser import RunArguments, parse_arguments
from adalora.training.run import (
    Run,
    TaskMetrics,
    check_schedule,
    data_source,
    seed_everything,
    summary_writer,
)
from adalora.training.steps import count_steps
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
    "seed_everything",
    "settings_of",
    "summary_writer",
    "tokenise",
    "told_in_a_sentence",
]

"""The program of ``run_glue.py`` and ``adalora train``: parse, build, train, evaluate, predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import TrainerCallback

from adalora.glue.load import load_data
from adalora.runtime.failures import StopOnSignal, report_as_user_error
from adalora.runtime.launch import leave_job
from adalora.runtime.machine import keep_freed_memory
from adalora.training.arguments.parser import RunArguments, parse_arguments
from adalora.training.build import (
    build_adaptation,
    build_model,
    build_tokenizer,
    data_source,
    how_it_starts,
    seed_everything,
    summary_writer,
)
from adalora.training.checkpointing.settings import data_settings, resume_settings
from adalora.training.checks import (
    check_asked,
    check_batches,
    check_combination,
    check_evaluation,
    check_schedule,
    check_tokenizer,
)
from adalora.training.folders import (
    clear_earlier_run,
    configure_logging,
    find_checkpoint,
    hold_folder,
)
from adalora.training.run import evaluate, finish, predict, save, train
from adalora.training.run_parts import Evaluated, RunParts, Trained, task_metrics
from adalora.training.tokenise import build_collator, longest, shares_cut, tokenise
from adalora.training.trainer import AdaLoraTrainer


def run(
    argv: Sequence[str] | None,
    *,
    program: str,
    script: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Parse the flags, and do what they say in a folder that no other run may use meanwhile.

    Args:
        argv: the flags; None for the process's own.
        program: what usage messages call the program, whose file is ``script`` if it is one.
        callbacks: for the Trainer, in addition to its own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = parse_arguments(words, program=program)
    keep_freed_memory(os.environ)
    stop, training = StopOnSignal(), arguments.training
    with stop.handle_signals(), report_as_user_error(training), hold_folder(training):
        train_and_evaluate(arguments, command=words, script=script, callbacks=[stop, *callbacks])
        leave_job()


def train_and_evaluate(
    arguments: RunArguments,
    *,
    command: Sequence[str] = (),
    script: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Build, train or resume, evaluate, predict, and leave a record of it all."""
    training = arguments.training
    check_asked(training)
    configure_logging(training)
    checkpoint = find_checkpoint(training)
    seed_everything(training)

    with training.main_process_first(desc="reading the data"):
        data = load_data(data_source(arguments))
    method = arguments.method
    if training.process_index == 0:
        print(data.understood, flush=True)
        if training.do_train:
            factors = f", --lora_init {method.lora_init}" if method.apply_lora else ""
            rate = f"learning rate {training.learning_rate:g}"
            print(f"method  {method.name}{factors}, {rate}", flush=True)
    check_evaluation(training, data)
    if training.do_train:
        check_batches(arguments, data)
        check_combination(arguments, data)
        check_schedule(arguments, data)

    tokenizer = build_tokenizer(arguments.model)
    built = build_model(arguments, data)
    model, lineage = built.model, built.lineage
    check_tokenizer(tokenizer, model)
    with training.main_process_first(desc="tokenising"):
        splits = tokenise(data, tokenizer, arguments.data)
    start = how_it_starts(
        arguments, data, built, checkpoint, shares_cut(splits, longest(arguments.data, tokenizer))
    )
    data = replace(data, understood=data.understood | start)
    if training.process_index == 0:
        print(start, flush=True)
    writer = summary_writer(training)
    adaptation = build_adaptation(model, method, writer=writer)
    settings = resume_settings(arguments)
    if training.do_train:
        settings |= data_settings(data, tokenizer, arguments.data.max_train_samples)
    trainer = AdaLoraTrainer(
        model=model,
        args=training,
        adaptation=adaptation,
        settings=settings,
        reg_loss_wgt=method.reg_loss_wgt,
        masking_prob=method.masking_prob,
        lora_plus_ratio=method.lora_plus_ratio,
        callbacks=list(callbacks),
        train_dataset=splits["train"] if training.do_train else None,
        eval_dataset=splits[data.validation_splits[0]] if training.do_eval else None,
        processing_class=tokenizer,
        data_collator=build_collator(tokenizer, training, model),
        compute_metrics=partial(task_metrics, data),
    )
    parts = RunParts(arguments, data, splits, tokenizer, adaptation, trainer, writer, lineage)

    trained: Trained | None = None
    evaluated: dict[str, Evaluated] = {}
    if training.do_train:
        clear_earlier_run(training, resumes=checkpoint is not None)
        trained = train(parts, checkpoint)
    if training.do_eval:
        evaluated = evaluate(parts)
        if trained is not None:
            save(parts, evaluated)
    if training.do_predict:
        predict(parts)
    finish(parts, trained, evaluated, command=command, script=script)

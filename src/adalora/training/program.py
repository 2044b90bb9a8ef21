"""The program of ``run_glue.py`` and ``adalora train``: parse, build, train, evaluate, predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback

from adalora import training as at
from adalora.glue.load import load_data

__all__ = ["run", "train_and_evaluate"]


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
        program: what usage messages call the program.
        script: its file, if it is one.
        callbacks: for the Trainer, beside its own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = at.parse_arguments(words, program=program)
    at.keep_freed_memory(os.environ)
    stop, training = at.StopOnSignal(), arguments.training
    with stop.handle_signals(), at.report_as_user_error(training), at.hold_folder(training):
        train_and_evaluate(arguments, command=words, script=script, callbacks=[stop, *callbacks])
        at.leave_job()


def train_and_evaluate(
    arguments: at.RunArguments,
    *,
    command: Sequence[str] = (),
    script: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Build, train or resume, evaluate, predict, and leave a record of it all."""
    training = arguments.training
    at.configure_logging(training)
    checkpoint = at.find_checkpoint(training)
    at.seed_everything(training)

    with training.main_process_first(desc="reading the data"):
        data = load_data(at.data_source(arguments))
    if training.do_train:
        at.check_combination(arguments, data)
        at.check_schedule(arguments, data)

    tokenizer = at.build_tokenizer(arguments.model)
    model = at.build_model(arguments, data)
    with training.main_process_first(desc="tokenising"):
        splits = at.tokenise(data, tokenizer, arguments.data)
    writer = at.summary_writer(training)
    adaptation = at.build_adaptation(model, arguments.method, writer=writer)
    trainer = at.AdaLoraTrainer(
        model=model,
        args=training,
        adaptation=adaptation,
        settings=at.course_settings(arguments),
        reg_loss_wgt=arguments.method.reg_loss_wgt,
        masking_prob=arguments.method.masking_prob,
        lora_plus_ratio=arguments.method.lora_plus_ratio,
        callbacks=list(callbacks),
        train_dataset=splits["train"] if training.do_train else None,
        eval_dataset=splits[data.validation_splits[0]] if training.do_eval else None,
        processing_class=tokenizer,
        data_collator=at.build_collator(tokenizer, training),
        compute_metrics=at.TaskMetrics(data),
    )
    finished = at.Run(arguments, data, splits, trainer, tokenizer, adaptation, writer, command)

    if training.do_train:
        at.clear_earlier_run(training, resumes=checkpoint is not None)
        finished.train(checkpoint)
    if training.do_eval:
        finished.evaluate()
    if training.do_predict:
        finished.predict()
    finished.finish(script=script)

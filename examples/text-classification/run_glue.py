#!/usr/bin/env python
"""Fine-tune a pretrained encoder with AdaLoRA (or LoRA, adapters, BitFit, all of it) on GLUE.

The commands of the original AdaLoRA repository run unchanged:

    python -m torch.distributed.launch --nproc_per_node=1 \
        examples/text-classification/run_glue.py \
        --model_name_or_path microsoft/deberta-v3-base --task_name rte \
        --apply_adalora --apply_lora --lora_type svd --lora_r 2 --target_rank 1 ...

Try it without a network: --model_name_or_path nano --task_name mini-sst2. All flags: --help.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adalora.errors import exit_with_message
from adalora.flags_help import show_help
from adalora.loralib_check import require_our_loralib

if TYPE_CHECKING:
    from adalora.training import RunArguments, StopOnSignal


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, and do what they say in a folder that no other run may use meanwhile."""
    if show_help(sys.argv[1:] if argv is None else argv):
        return
    require_our_loralib()
    from adalora import training as at

    arguments = at.parse_arguments(argv, program="run_glue.py")
    stop, training = at.StopOnSignal(), arguments.training
    with stop.heeded(), at.told_in_a_sentence(training), at.hold_folder(training):
        train_and_evaluate(arguments, stop)


def train_and_evaluate(arguments: RunArguments, stop: StopOnSignal) -> None:
    """Build, train or resume, evaluate, predict, summarise."""
    from adalora import training as at
    from adalora.glue import load_data

    training = arguments.training
    at.configure_logging(training)
    checkpoint = at.find_checkpoint(training)
    at.seed_everything(training)

    with training.main_process_first(desc="reading the data"):
        data = load_data(at.data_source(arguments))
    if training.do_train:
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
        callbacks=[stop],
        train_dataset=splits["train"] if training.do_train else None,
        eval_dataset=splits[data.validation_splits[0]] if training.do_eval else None,
        processing_class=tokenizer,
        data_collator=at.build_collator(tokenizer, training),
        compute_metrics=at.build_metrics(data),
    )
    run = at.Run(arguments, data, splits, trainer, tokenizer, adaptation, writer)

    if training.do_train:
        at.clear_earlier_run(training, resumes=checkpoint is not None)
        started = time.perf_counter()
        result = trainer.train(resume_from_checkpoint=checkpoint)
        run.finish_training(result.metrics, seconds=time.perf_counter() - started)
    if training.do_eval:
        run.evaluate()
    if training.do_predict:
        run.predict()
    run.summarise(script=Path(__file__))
    # Leaves the process group in order; torn down by the interpreter, it now and then aborts.
    trainer.accelerator.end_training()


if __name__ == "__main__":
    sys.exit(exit_with_message(main))

"""``adalora plan FLAGS...``: what run_glue.py would do with these flags, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adalora.commands.train import show_help
from adalora.errors import UserError

if TYPE_CHECKING:
    from adalora.data.understood import Understood
    from adalora.glue.load import TaskData
    from adalora.terminal.summaries import PlanSummary
    from adalora.training.arguments.parser import RunArguments


def main(flags: Sequence[str]) -> int:
    """Print the plan; 1 if something is wrong with its schedule."""
    if show_help(flags, program="adalora plan"):
        return 0
    from rich.console import Console

    from adalora.commands.flags import require_our_loralib
    from adalora.terminal.summaries import plan_summary

    require_our_loralib()
    from adalora.training.arguments.parser import parse_arguments

    plan = make_plan(parse_arguments(flags, program="adalora plan"))
    Console().print(plan_summary(plan))
    return 1 if plan.problems else 0


def make_plan(arguments: RunArguments) -> PlanSummary:
    """The facts of the run that these arguments describe, and what is wrong with its schedule.

    Raises:
        UserError: if the data or the model's configuration cannot be had.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    from adalora.adapters.freeze import count_parameters
    from adalora.glue.load import load_data
    from adalora.pretrained.loading import load_config
    from adalora.terminal.summaries import PlanSummary
    from adalora.training.adaptation import AdaLora
    from adalora.training.build import adapt, count_steps, data_source

    arguments.training.do_train = True
    data = load_data(data_source(arguments))
    limits = {"train": arguments.data.max_train_samples}
    limits |= dict.fromkeys(data.validation_splits, arguments.data.max_val_samples)
    limits |= dict.fromkeys(data.test_splits, arguments.data.max_test_samples)
    examples = {
        name: min(len(split), limits.get(name) or len(split)) for name, split in data.splits.items()
    }
    steps = count_steps(examples["train"], arguments.training)

    config = load_config(
        arguments.model.config_name or arguments.model.model_name_or_path,
        num_labels=data.num_labels,
        cache_dir=arguments.model.cache_dir,
        revision=arguments.model.model_revision,
        token=True if arguments.model.use_auth_token else None,
        trust_remote_code=arguments.model.trust_remote_code,
    )
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    model = adapt(model, arguments.method, total_steps=steps).model
    counts = count_parameters(model)

    schedule, kept, problems = None, None, []
    method = arguments.method
    if method.allocates:
        settings = method.settings
        adaptation = AdaLora(model, settings)
        matrices = len(adaptation.layers)
        try:
            schedule = settings.schedule(adaptation.total_rank, matrices, steps)
        except UserError as error:
            problems.append(str(error))
        else:
            share = schedule.target_total_rank / adaptation.total_rank
            kept = round(counts.adapter_initial * share)
            decay = steps - schedule.init_warmup - schedule.final_warmup
            if decay < steps / 2 and not settings.grows:
                problems.append(
                    f"The decay phase is {decay} of {steps} steps; the paper's authors advise at "
                    "least half (QingruZhang/AdaLoRA, issue 19): shorten the warm-ups."
                )
            if decay < method.mask_interval:
                happens = {
                    "decay": "the budget falls at once at its end",
                    "growth": "the budget rises at once at its end",
                    "exchange": "hardly anything changes places",
                }
                problems.append(
                    f"The {schedule.phase} phase of {decay} steps is shorter than --mask_interval "
                    f"{method.mask_interval}: {happens[schedule.phase]}."
                )
    start = _start(arguments, data, problems)
    where = arguments.data.task_name or arguments.data.train_file
    return PlanSummary(
        title=f"{method.name} on {arguments.model.model_name_or_path}, {where}",
        examples=examples,
        steps=steps,
        schedule=schedule,
        parameters_start=counts.adapter_initial,
        parameters_end=kept,
        parameters_head=counts.head,
        parameters_total=counts.total,
        problems=problems,
        understood=(data.understood | start).facts(),
    )


def _start(arguments: RunArguments, data: TaskData, problems: list[str]) -> Understood:
    """What the run would start from; what would keep it from starting joins ``problems``."""
    from adalora.data.understood import SAMPLE, Understood, share_cut
    from adalora.training.build import build_tokenizer, classes_of_head
    from adalora.training.folders import find_checkpoint
    from adalora.training.tokenise import longest

    tokenizer = build_tokenizer(arguments.model)
    keys = [key for key in (data.sentence1_key, data.sentence2_key) if key is not None]
    length, cut = longest(arguments.data, tokenizer), {}
    for name, split in data.splits.items():
        first = split[:SAMPLE]
        more = f"the first {SAMPLE:,} of " if len(split) > SAMPLE else ""
        cut[more + name] = share_cut(tokenizer, [first[key] for key in keys], length)
    method, resumes = arguments.method, None
    try:
        if Path(str(arguments.training.output_dir)).is_dir():
            resumes = find_checkpoint(arguments.training)
    except UserError as error:
        problems.append(str(error))
    classes = classes_of_head(arguments)
    source = method.adapter_path or method.lora_path or arguments.model.model_name_or_path
    named = ", ".join(classes or ()) or "a number"
    return Understood(
        cut=cut,
        longest=length,
        weights=arguments.model.model_name_or_path,
        head="new" if classes is None else f"that of {source} ({named}), row by row where they fit",
        resumes=resumes,
    )

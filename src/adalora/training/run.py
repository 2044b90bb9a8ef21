"""The steps of a run and what each leaves on disk, in TensorBoard and in the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from transformers.trainer import TRAINER_STATE_NAME

from adalora.adapters.freeze import count_parameters
from adalora.artefact.description import Description
from adalora.artefact.writer import save_artefact
from adalora.glue.predictions import result_name, write_predictions
from adalora.glue.tasks import MINI_PREFIX
from adalora.results.record import RunRecord
from adalora.shell import program, short_path, typed
from adalora.storage.atomic import atomic_write
from adalora.storage.files import write_json
from adalora.terminal.summaries import RunSummary, Score, run_summary
from adalora.training.arguments.parser import RunArguments
from adalora.training.make_record import fingerprint, make_record, write_history
from adalora.training.run_parts import Answers, Evaluated, RunParts, Trained, decide


def train(parts: RunParts, checkpoint: str | None) -> Trained:
    """Train, from the start or from ``checkpoint``; write what was found and the artefact."""
    trainer, start = parts.trainer, fingerprint(parts.model)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    # What is logged from here on is of the end.
    logged = list(trainer.state.log_history)
    trained = Trained(dict(result.metrics), logged, moved=start != fingerprint(parts.model))
    if parts.is_main:
        samples = len(parts.splits["train"])
        write_json(parts.root / "train_results.json", {**trained.metrics, "train_samples": samples})
        # As ``Trainer.save_state``, whole or not at all, and through no link.
        with atomic_write(Path(str(trainer.args.output_dir)) / TRAINER_STATE_NAME) as new:
            trainer.state.save_to_json(str(new))
        if parts.rank_pattern:
            write_json(parts.root / "rank_pattern.json", parts.rank_pattern)
        save(parts, {})
    return trained


def evaluate(parts: RunParts) -> dict[str, Evaluated]:
    """Evaluate on every validation set of the task and write ``eval_results_<task>.json``."""
    found: dict[str, Evaluated] = {}
    for split in parts.data.validation_splits:
        name = _result_name(parts, split)
        # As ``Trainer.evaluate``, which does not hand the predictions out.
        output = parts.trainer.predict(parts.splits[split], metric_key_prefix="eval")
        scores = dict(output.metrics or {})
        parts.trainer.log(scores)
        metrics = {**scores, "eval_samples": len(parts.splits[split])}
        guess = decide(output.predictions, parts.data.is_regression)
        found[split] = Evaluated(metrics, Answers(guess, np.asarray(output.label_ids).reshape(-1)))
        if not parts.is_main:
            continue
        write_json(parts.root / f"eval_results_{name}.json", metrics)
        if parts.writer is not None:
            for key, value in metrics.items():
                epochs = parts.arguments.training.num_train_epochs
                parts.writer.add_scalar(f"Eval_{name}/{key}", value, epochs)
    return found


def predict(parts: RunParts) -> None:
    """Predict every test set of the task and write ``test_results_<task>.txt``."""
    for split in parts.data.test_splits:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = parts.trainer.predict(parts.splits[split]).predictions
        predictions = decide(logits, parts.data.is_regression)
        if parts.is_main:
            path = parts.root / f"test_results_{_result_name(parts, split)}.txt"
            write_predictions(path, predictions, parts.data.labels)


def save(parts: RunParts, evaluated: Mapping[str, Evaluated]) -> None:
    """Write the artefact to ``model/``, from the main process."""
    if not parts.is_main:
        return
    arguments, data, model = parts.arguments, parts.data, parts.model
    columns = (data.sentence1_key, data.sentence2_key)
    save_artefact(
        Path(str(arguments.training.output_dir)),
        model,
        tokenizer=parts.tokenizer,
        description=Description.of(
            model,
            base_model=arguments.model.model_name_or_path,
            revision=arguments.model.model_revision,
            method=arguments.method.name,
            task=arguments.data.task_name,
            labels=data.labels,
            is_regression=data.is_regression,
            text_columns=[column for column in columns if column is not None],
            label_column=data.label_column,
            data=data.understood.as_json(),
            max_seq_length=arguments.data.max_seq_length,
            training=_settings(parts),
        ),
        rank_pattern=parts.rank_pattern,
        metrics={split: dict(one.metrics) for split, one in evaluated.items()},
        lineage=parts.lineage,
        base_fingerprint=parts.trainer.base_fingerprint,
        overwrite=True,
    )


def _settings(parts: RunParts) -> dict[str, Any]:
    """Those of the run's settings that its artefact keeps."""
    training = parts.arguments.training
    settings = {
        "steps": parts.trainer.state.global_step,
        "examples": len(parts.splits["train"]) if "train" in parts.splits else 0,
        "batch_size": training.train_batch_size
        * training.gradient_accumulation_steps
        * training.world_size,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "seed": training.seed,
    }
    if parts.adaptation is not None:
        settings |= asdict(parts.adaptation.settings)
    return settings


def _result_name(parts: RunParts, split: str) -> str:
    return result_name(parts.arguments.data.task_name, split)


def finish(
    parts: RunParts,
    trained: Trained | None,
    evaluated: Mapping[str, Evaluated],
    *,
    command: Sequence[str],
    script: Path | None,
) -> None:
    """Write the record, and print how good the model is, at what cost, and what to type next.

    ``trained`` is None where the run only evaluates, ``evaluated`` by split, ``command`` the words
    of the command line, and ``script`` the program that runs (None for ``adalora train``).
    """
    if parts.writer is not None:
        parts.writer.close()
    if not parts.is_main:
        return
    grown_from = 0
    if parts.adaptation is not None and parts.adaptation.settings.grows:
        # Ranks grow from one triplet per matrix, or are exchanged between matrices.
        grow = parts.adaptation.settings.allocation == "grow"
        grown_from = len(parts.rank_pattern) if grow else sum(parts.rank_pattern.values())
    counts = count_parameters(parts.model, parts.rank_pattern or None)
    record = make_record(parts, counts, trained, evaluated, command)
    write_history(parts, evaluated)
    # Last of all: a run that has a record is finished.
    record.write(parts.root)
    arguments = parts.arguments
    pairs = parts.data.sentence2_key is not None
    where = arguments.data.task_name or arguments.data.train_file or "your data"
    summary = RunSummary(
        title=f"{record.method} on {record.base_model}, {where}",
        scores=_scores(record),
        rank_pattern=record.rank_pattern,
        init_rank=record.init_rank,
        mask_events=record.mask_events,
        grown_from=grown_from,
        parameters_initial=counts.adapter_initial,
        parameters_kept=counts.adapter_kept,
        parameters_head=counts.head,
        parameters_total=counts.total,
        seconds=record.seconds,
        results=parts.root,
        next_commands=next_commands(arguments, script, pairs=pairs) if trained else (),
        warnings=[warning["message"] for warning in record.warnings],
    )
    Console().print(run_summary(summary))


def _scores(record: RunRecord) -> list[Score]:
    """Every metric of the model that the run leaves, for the terminal."""
    return [
        Score(split, name, value, scores["majority"] if name == scores["main"] else None)
        for split, scores in record.scores.items()
        for name, value in scores["saved"].items()
    ]


def next_commands(
    arguments: RunArguments, script: Path | None, *, pairs: bool = False
) -> list[tuple[str, str]]:
    """Reason and command of what to do after training, as it works from the working directory.

    ``script`` is the program that ran (None for ``adalora train``); ``pairs`` is whether the task
    is about pairs of texts.
    """
    run = typed(short_path(Path(str(arguments.training.root_output_dir))))
    texts = r"printf 'A text.\tAnother text.\n'" if pairs else "echo 'A text to classify.'"
    commands = [("Use the model", f"{texts} | {program('adalora')} predict {run}")]
    if arguments.training.uses_tensorboard:
        log = typed(short_path(Path(str(arguments.training.log_dir))))
        commands.append(("Watch the curves", f"{program('tensorboard')} --logdir {log}"))
    task_name = arguments.data.task_name or ""
    if task_name.startswith(MINI_PREFIX):
        task = task_name.removeprefix(MINI_PREFIX)
        if scripts := _task_scripts(script):
            own = scripts.get(f"run_debertav3_{task}") or scripts["run_debertav3_rte"]
            reason = "The same on the real task, from the official GLUE files in GLUE_FOLDER"
            commands.append((reason, f"bash {typed(short_path(own))} --data_dir GLUE_FOLDER"))
        trainer = f"{program('adalora')} train"
        if script is not None:
            trainer = f"{program('python')} {typed(short_path(script))}"
        reason = "The same on your own data, two files with a column label and one or two of text"
        command = (
            f"{trainer} --model_name_or_path nano --train_file train.csv --validation_file "
            "dev.csv --do_train --do_eval --apply_adalora --root_output_dir output/mine"
        )
        commands.append((reason, command))
    return commands


def _task_scripts(script: Path | None) -> dict[str, Path]:
    """The project's shell scripts by name, one per task; none where there is no checkout."""
    if script is None:
        return {}
    folder = script.resolve().parents[2] / "scripts"
    return {path.stem: path for path in folder.glob("run_debertav3_*.sh")}

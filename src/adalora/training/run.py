"""A run after its parts are built: its results on disk, in TensorBoard and in the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from datasets import Dataset
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase

from adalora.adapters.freeze import count_parameters
from adalora.artefact.description import Description
from adalora.artefact.writer import save_artefact
from adalora.glue.load import TaskData
from adalora.glue.predictions import result_name, write_predictions
from adalora.glue.tasks import MINI_PREFIX
from adalora.results.record import RunRecord
from adalora.shell import program, short_path, typed
from adalora.storage.files import write_json
from adalora.terminal.run_summary import RunSummary, Score, run_summary
from adalora.training.adaptation import AdaLora
from adalora.training.arguments.parser import RunArguments
from adalora.training.make_record import fingerprint, make_record, write_history
from adalora.training.peft_adaptation import PeftAdaLora
from adalora.training.task_metrics import Answers, TaskMetrics, _decide
from adalora.training.trainer import AdaLoraTrainer

__all__ = [
    "Run",
    "next_commands",
]


@dataclass
class Run:
    """One run: its arguments, its parts, and what it has found so far."""

    arguments: RunArguments
    data: TaskData
    splits: dict[str, Dataset]
    trainer: AdaLoraTrainer
    tokenizer: PreTrainedTokenizerBase
    adaptation: AdaLora | PeftAdaLora | None
    writer: Any = None
    command: Sequence[str] = ()
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)
    trained: bool = False
    train_metrics: dict[str, float] = field(default_factory=dict)
    logged: list[dict[str, Any]] = field(default_factory=list)
    start: list[float] | None = None

    @property
    def root(self) -> Path:
        """Folder of the run."""
        return Path(str(self.arguments.training.root_output_dir))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.trainer.is_world_process_zero())

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Triplets kept per matrix; empty where the method has none."""
        return {} if self.adaptation is None else self.adaptation.rank_pattern()

    @property
    def model(self) -> nn.Module:
        """The adapted model, without what distributes it."""
        model: nn.Module = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return model

    def train(self, checkpoint: str | None) -> None:
        """Train, from the start or from ``checkpoint``, and write what training leaves."""
        self.start = fingerprint(self.model)
        result = self.trainer.train(resume_from_checkpoint=checkpoint)
        self.trained = True
        self.train_metrics = dict(result.metrics)
        # What is evaluated from here on is of the end.
        self.logged = list(self.trainer.state.log_history)
        self._finish_training()

    def _finish_training(self) -> None:
        """Write ``train_results.json``, ``rank_pattern.json`` and the artefact."""
        if not self.is_main:
            return
        results = {**self.train_metrics, "train_samples": len(self.splits["train"])}
        write_json(self.root / "train_results.json", results)
        self.trainer.save_state()
        if self.rank_pattern:
            write_json(self.root / "rank_pattern.json", self.rank_pattern)
        self.save()

    def save(self) -> None:
        """Write the artefact to ``model/``."""
        arguments, data, model = self.arguments, self.data, self.model
        columns = (data.sentence1_key, data.sentence2_key)
        save_artefact(
            Path(str(arguments.training.output_dir)),
            model,
            tokenizer=self.tokenizer,
            description=Description.of(
                model,
                base_model=arguments.model.model_name_or_path,
                revision=arguments.model.model_revision,
                method=arguments.method.name,
                task=arguments.data.task_name,
                labels=data.labels,
                is_regression=data.is_regression,
                text_columns=[column for column in columns if column is not None],
                max_seq_length=arguments.data.max_seq_length,
                training=self._settings(),
            ),
            rank_pattern=self.rank_pattern,
            metrics=self.metrics,
            base_fingerprint=self.trainer.base_fingerprint,
            overwrite=True,
        )

    def _settings(self) -> dict[str, Any]:
        """What of the run's settings its artefact tells."""
        training = self.arguments.training
        settings = {
            "steps": self.trainer.state.global_step,
            "examples": len(self.splits["train"]) if "train" in self.splits else 0,
            "batch_size": training.train_batch_size
            * training.gradient_accumulation_steps
            * training.world_size,
            "learning_rate": training.learning_rate,
            "weight_decay": training.weight_decay,
            "seed": training.seed,
        }
        if self.adaptation is not None:
            settings |= asdict(self.adaptation.settings)
        return settings

    def evaluate(self) -> None:
        """Evaluate on every validation set of the task and write ``eval_results_<task>.json``."""
        for split in self.data.validation_splits:
            name = self._result_name(split)
            metrics = dict(self.trainer.evaluate(eval_dataset=self.splits[split]))
            metrics["eval_samples"] = len(self.splits[split])
            self.metrics[split] = metrics
            answers = cast(TaskMetrics, self.trainer.compute_metrics).answers
            self.answers[split] = cast(Answers, answers)
            if not self.is_main:
                continue
            write_json(self.root / f"eval_results_{name}.json", metrics)
            if self.writer is not None:
                for key, value in metrics.items():
                    epochs = self.arguments.training.num_train_epochs
                    self.writer.add_scalar(f"Eval_{name}/{key}", value, epochs)
        if self.is_main and self.trained:
            self.save()

    def predict(self) -> None:
        """Predict every test set of the task and write ``test_results_<task>.txt``."""
        for split in self.data.test_splits:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logits = self.trainer.predict(self.splits[split]).predictions
            predictions = _decide(logits, self.data.is_regression)
            if self.is_main:
                path = self.root / f"test_results_{self._result_name(split)}.txt"
                write_predictions(path, predictions, self.data.labels)

    def _result_name(self, split: str) -> str:
        return result_name(self.arguments.data.task_name, split)

    def finish(self, *, script: Path | None) -> None:
        """Write the record, and print how good the model is, at what cost, and what to type next.

        Args:
            script: the program that runs; None for ``adalora train``.
        """
        if self.writer is not None:
            self.writer.close()
        if not self.is_main:
            return
        counts = count_parameters(self.model, self.rank_pattern or None)
        record = make_record(self, counts)
        write_history(self, self.root)
        # Last of all: a run that has a record is finished.
        record.write(self.root)
        arguments = self.arguments
        where = arguments.data.task_name or arguments.data.train_file or "your data"
        summary = RunSummary(
            title=f"{record.method} on {record.base_model}, {where}",
            scores=_scores(record),
            rank_pattern=record.rank_pattern,
            init_rank=record.init_rank,
            mask_events=record.mask_events,
            grown_from=self._grown_from(),
            parameters_initial=counts.adapter_initial,
            parameters_kept=counts.adapter_kept,
            parameters_head=counts.head,
            parameters_total=counts.total,
            seconds=record.seconds,
            results=self.root,
            next_commands=self._next_commands(script),
            warnings=[warning["message"] for warning in record.warnings],
        )
        Console().print(run_summary(summary))

    def _next_commands(self, script: Path | None) -> Sequence[tuple[str, str]]:
        pairs = self.data.sentence2_key is not None
        return next_commands(self.arguments, script, pairs=pairs) if self.trained else ()

    def _grown_from(self) -> int:
        """Triplets that the model started with, where ranks grow; 0 where they do not."""
        if self.adaptation is None or not self.adaptation.settings.grows:
            return 0
        return len(self.rank_pattern)


def _scores(record: RunRecord) -> list[Score]:
    """Every metric on every evaluation set, for the terminal."""
    return [
        Score(split, name, value, scores["majority"] if name == scores["main"] else None)
        for split, scores in record.scores.items()
        for name, value in scores["last"].items()
    ]


def next_commands(
    arguments: RunArguments, script: Path | None, *, pairs: bool = False
) -> list[tuple[str, str]]:
    """Commands to go on with after training, as they work from the working directory.

    Args:
        arguments: of the run.
        script: the program that ran; None for ``adalora train``.
        pairs: whether the task is about pairs of texts.

    Returns:
        Reason and command, one after the other.
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
            commands.append(
                (
                    "The same on the real task, from the official GLUE files in GLUE_FOLDER",
                    f"bash {typed(short_path(own))} --data_dir GLUE_FOLDER",
                )
            )
        trainer = f"{program('adalora')} train"
        if script is not None:
            trainer = f"{program('python')} {typed(short_path(script))}"
        commands.append(
            (
                "The same on your own data, two files with a column label and one or two of text",
                f"{trainer} --model_name_or_path nano --train_file train.csv --validation_file "
                "dev.csv --do_train --do_eval --apply_adalora --root_output_dir output/mine",
            )
        )
    return commands


def _task_scripts(script: Path | None) -> dict[str, Path]:
    """The project's shell scripts by name, one per task; none where there is no checkout."""
    if script is None:
        return {}
    folder = script.resolve().parents[2] / "scripts"
    return {path.stem: path for path in folder.glob("run_debertav3_*.sh")}

"""A run after its parts are built: its results on disk, in TensorBoard and in the terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from rich.console import Console
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adalora.adapters import count_parameters
from adalora.checkpoints import Description, save_artefact
from adalora.checkpoints.files import write_json
from adalora.errors import UserError
from adalora.glue import (
    DataSource,
    TaskData,
    compute_glue_metrics,
    main_metric_of,
    write_predictions,
)
from adalora.glue.tasks import MINI_PREFIX
from adalora.report import RunSummary, Score, run_summary
from adalora.training.adaptation import AdaLora
from adalora.training.arguments import AdaLoraTrainingArguments
from adalora.training.build import settings_of
from adalora.training.parser import RunArguments
from adalora.training.steps import count_steps
from adalora.training.trainer import AdaLoraTrainer

__all__ = [
    "Run",
    "build_metrics",
    "check_schedule",
    "data_source",
    "seed_everything",
    "summary_writer",
]


def data_source(arguments: RunArguments) -> DataSource:
    """Where the flags say the data is, and which splits the run needs."""
    training, data = arguments.training, arguments.data
    need = (
        *(("train",) if training.do_train else ()),
        *(("validation",) if training.do_eval else ()),
        *(("test",) if training.do_predict else ()),
    )
    return DataSource(
        task_name=data.task_name,
        data_dir=data.data_dir,
        train_file=data.train_file,
        validation_file=data.validation_file,
        test_file=data.test_file,
        cache_dir=arguments.model.cache_dir,
        need=need,
    )


def seed_everything(training: AdaLoraTrainingArguments) -> None:
    """Seed before the model is built: the head and the adapters are drawn at random."""
    if training.full_determinism:
        transformers.enable_full_determinism(training.seed)
    else:
        transformers.set_seed(training.seed)
    torch.use_deterministic_algorithms(
        training.use_deterministic_algorithms or training.full_determinism
    )


def summary_writer(training: AdaLoraTrainingArguments) -> Any:
    """A TensorBoard writer in the run's ``log/``; None in other processes, or when not asked for.

    The Trainer's own TensorBoard records go to the same folder, by the variable it reads.
    """
    if not training.uses_tensorboard or training.process_index != 0:
        return None
    import os

    from torch.utils.tensorboard import SummaryWriter

    os.environ["TENSORBOARD_LOGGING_DIR"] = training.log_dir
    return SummaryWriter(log_dir=training.log_dir)


def check_schedule(arguments: RunArguments, data: TaskData) -> None:
    """Refuse a schedule that does not fit the run, before a model is loaded.

    Raises:
        UserError: as ``AdaLoraSettings.schedule``.
    """
    method = arguments.method
    if not method.apply_adalora:
        return
    examples = len(data.splits["train"])
    if arguments.data.max_train_samples is not None:
        examples = min(examples, arguments.data.max_train_samples)
    init_rank = int(method.lora_r or 0)
    # One matrix stands for all: the budget scales with their number. With target_total_rank the
    # number matters, and the check is made again when the model is there.
    target = method.target_rank if method.target_total_rank is None else 0
    if target > init_rank:
        raise UserError(
            f"--target_rank {target} is above --lora_r {init_rank}: AdaLoRA prunes from lora_r "
            "down to target_rank; swap or change them."
        )
    settings = settings_of(method)
    steps = count_steps(examples, arguments.training)
    if method.target_total_rank is None:
        settings.schedule(init_rank, 1, steps)


def build_metrics(data: TaskData) -> Callable[[EvalPrediction], dict[str, float]]:
    """The metrics of the task, from the Trainer's predictions."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        return compute_glue_metrics(
            None if data.task is None else data.task.name,
            _decide(prediction.predictions, data.is_regression),
            prediction.label_ids,
            is_regression=data.is_regression,
        )

    return compute


def _decide(logits: Any, is_regression: bool) -> np.ndarray[Any, Any]:
    """Scores [n] or class indices [n] from logits [n, labels]."""
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    return logits.reshape(-1) if is_regression else logits.argmax(axis=-1)


@dataclass
class Run:
    """One run: what it was told, its parts, and what it has found so far."""

    arguments: RunArguments
    data: TaskData
    splits: dict[str, Dataset]
    trainer: AdaLoraTrainer
    tokenizer: PreTrainedTokenizerBase
    adaptation: AdaLora | None
    writer: Any = None
    seconds: float | None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

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

    def finish_training(self, metrics: Mapping[str, float], *, seconds: float) -> None:
        """Write ``train_results.json``, ``rank_pattern.json`` and the artefact."""
        self.seconds = seconds
        if not self.is_main:
            return
        results = {**metrics, "train_samples": len(self.splits["train"])}
        write_json(self.root / "train_results.json", results)
        self.trainer.save_state()
        if self.rank_pattern:
            write_json(self.root / "rank_pattern.json", self.rank_pattern)
        self.save()

    def save(self) -> None:
        """Write the artefact to ``model/``."""
        arguments, data = self.arguments, self.data
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
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
            if not self.is_main:
                continue
            write_json(self.root / f"eval_results_{name}.json", metrics)
            if self.writer is not None:
                for key, value in metrics.items():
                    epochs = self.arguments.training.num_train_epochs
                    self.writer.add_scalar(f"Eval_{name}/{key}", value, epochs)
        if self.is_main and self.seconds is not None:
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
        """The original's name of a result file: the task, and mnli-mm for the mismatched sets."""
        task = self.arguments.data.task_name or "custom"
        if split.endswith("_mismatched"):
            return f"{task}-mm"
        return split if split == "ax" else task

    def summarise(self, *, script: Path) -> None:
        """Print how good the model is, at what cost, where it lies and what to type next."""
        if self.writer is not None:
            self.writer.close()
        if not self.is_main:
            return
        arguments = self.arguments
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        pattern = self.rank_pattern
        counts = count_parameters(model, pattern or None)
        allocator = None if self.adaptation is None else self.adaptation.allocator
        where = arguments.data.task_name or arguments.data.train_file or "your data"
        summary = RunSummary(
            title=f"{arguments.method.name} on {arguments.model.model_name_or_path}, {where}",
            scores=self._scores(),
            rank_pattern=pattern,
            init_rank=self.adaptation.init_rank if self.adaptation is not None else 0,
            mask_events=allocator.mask_events if allocator is not None else 0,
            parameters_initial=counts.adapter_initial,
            parameters_kept=counts.adapter_kept,
            parameters_head=counts.head,
            parameters_total=counts.total,
            seconds=self.seconds,
            results=self.root,
            next_commands=self._next_commands(script),
            warnings=self._all_warnings(),
        )
        Console().print(run_summary(summary))

    def _scores(self) -> list[Score]:
        scores = []
        for split, metrics in self.metrics.items():
            for name in ("loss", "samples", "runtime", "samples_per_second", "steps_per_second"):
                metrics = {k: v for k, v in metrics.items() if k != f"eval_{name}"}
            main = main_metric_of(self.data.task, self.data.is_regression)
            for key, value in metrics.items():
                name = key.removeprefix("eval_")
                if key.startswith("eval_") and isinstance(value, float):
                    majority = self.data.majority_score(split) if name == main else None
                    scores.append(Score(split, name, value, majority))
        return scores

    def _all_warnings(self) -> list[str]:
        found = list(self.warnings)
        allocator = None if self.adaptation is None else self.adaptation.allocator
        if left_out := self.trainer.bad_steps.total:
            found.append(
                f"{left_out} of {self.trainer.state.global_step} steps were left out, because "
                "their gradient was NaN or infinite."
            )
        elif allocator is not None and allocator.skipped_steps:
            found.append(
                f"In {allocator.skipped_steps} of {allocator.updates_due} steps a gradient was "
                "missing or not finite, and importance was left as it was."
            )
        for split, metrics in self.metrics.items():
            value = metrics.get(f"eval_{main_metric_of(self.data.task, self.data.is_regression)}")
            majority = self.data.majority_score(split)
            if self.seconds is not None and value is not None and value <= majority + 1e-9:
                found.append(
                    f"The score on {split} is no better than always answering the most frequent "
                    "class: train longer, or change the learning rate."
                )
        return found

    def _next_commands(self, script: Path) -> list[tuple[str, str]]:
        arguments = self.arguments
        commands = []
        if self.seconds is not None:
            if arguments.training.uses_tensorboard:
                commands.append(
                    ("Watch the curves", f"tensorboard --logdir {arguments.training.log_dir}")
                )
            if (arguments.data.task_name or "").startswith(MINI_PREFIX):
                task = str(arguments.data.task_name).removeprefix(MINI_PREFIX)
                example = task if f"run_debertav3_{task}.sh" in _task_scripts(script) else "rte"
                commands.append(
                    (
                        "The same on the real task, from the official GLUE files",
                        f"bash scripts/run_debertav3_{example}.sh --data_dir GLUE_FOLDER",
                    )
                )
                commands.append(
                    (
                        "The same on your own data",
                        f"python {_short(script)} --model_name_or_path nano --train_file "
                        "train.csv --validation_file dev.csv --do_train --do_eval --apply_lora "
                        "--lora_r 4 --root_output_dir output/mine",
                    )
                )
        return commands


def _task_scripts(program: Path) -> set[str]:
    """Names of the project's shell scripts, one per task."""
    return {path.name for path in (program.resolve().parents[2] / "scripts").glob("run_*.sh")}


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

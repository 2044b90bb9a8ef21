"""What a run is made of, and what its training and each evaluation give back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import EvalPrediction, PreTrainedTokenizerBase

from adalora.artefact.description import Origin
from adalora.glue.load import TaskData
from adalora.glue.metrics import compute_glue_metrics
from adalora.training.arguments.parser import RunArguments
from adalora.training.protocol import Adaptation
from adalora.training.trainer import AdaLoraTrainer


@dataclass(frozen=True)
class RunParts:
    """The parts of one run, after they are built and before anything is done with them."""

    arguments: RunArguments
    data: TaskData
    splits: Mapping[str, Dataset]
    tokenizer: PreTrainedTokenizerBase
    adaptation: Adaptation | None
    trainer: AdaLoraTrainer
    writer: Any = None
    #: What the adapters were read from, the nearest first.
    lineage: Sequence[Origin] = ()

    @property
    def root(self) -> Path:
        """Folder of the run."""
        return Path(str(self.arguments.training.root_output_dir))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return bool(self.trainer.is_world_process_zero())

    @property
    def model(self) -> nn.Module:
        """The adapted model, without what distributes it."""
        model: nn.Module = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return model

    @property
    def rank_pattern(self) -> dict[str, int]:
        """Triplets kept per matrix; empty where the method has none."""
        return {} if self.adaptation is None else self.adaptation.rank_pattern()


@dataclass(frozen=True)
class Trained:
    """What training gave: its metrics, what was logged, and whether a parameter changed."""

    metrics: Mapping[str, float]
    logged: Sequence[Mapping[str, Any]]
    moved: bool


@dataclass(frozen=True)
class Answers:
    """What a model answered on one evaluation set, and the labels: numbers or classes [n]."""

    predictions: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def distinct(self, names: Sequence[str] | None) -> list[str]:
        """The different answers, by name where classes have one."""
        found = Counter(self.predictions.tolist())
        return [str(one) if names is None else names[int(one)] for one in found]


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation on one set gave."""

    metrics: Mapping[str, float]
    answers: Answers


def task_metrics(data: TaskData, prediction: EvalPrediction) -> dict[str, float]:
    """Metric -> value of the Trainer's predictions."""
    return compute_glue_metrics(
        None if data.task is None else data.task.name,
        decide(prediction.predictions, data.is_regression),
        prediction.label_ids,
        is_regression=data.is_regression,
        labels=data.labels,
    )


def decide(logits: Any, is_regression: bool) -> np.ndarray[Any, Any]:
    """Scores [n] or class indices [n] from logits [n, labels]."""
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    return logits.reshape(-1) if is_regression else logits.argmax(axis=-1)

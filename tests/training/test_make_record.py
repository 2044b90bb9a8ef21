"""Which model each score of a record is of, and what a guard compares it with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import loralib
from adalora.adapters.kinds import LORA_KINDS
from adalora.glue.load import TaskData
from adalora.glue.tasks import TASKS
from adalora.results.guards import Evidence, find_warnings
from adalora.results.record import SplitScores
from adalora.training.make_record import _scores, _update_is_zero, fingerprint

LABELS = {"train": [0, 0, 1], "validation_matched": [0, 0, 1, 2], "validation_mismatched": [1, 0]}
LOGGED = [
    {"epoch": 1.0, "eval_accuracy": 0.5},
    {"epoch": 2.0, "eval_accuracy": 0.9},
    {"epoch": 3.0, "eval_accuracy": 0.7},
]


def scores_of(
    *, best_loaded: bool, chosen_by: str = "accuracy", examples: int | None = None, **reached: float
) -> dict[str, SplitScores]:
    """The scores of a run on MNLI that was evaluated three times on the way."""
    splits = DatasetDict({name: Dataset.from_dict({"label": of}) for name, of in LABELS.items()})
    validation = ("validation_matched", "validation_mismatched")
    data = TaskData(
        splits=splits,
        task=TASKS["mnli"],
        sentence1_key="premise",
        sentence2_key="hypothesis",
        labels=TASKS["mnli"].labels,
        validation_splits=validation,
        test_splits=(),
        origin="",
    )
    parts: Any = SimpleNamespace(
        arguments=SimpleNamespace(
            training=SimpleNamespace(
                load_best_model_at_end=best_loaded, metric_for_best_model=chosen_by
            )
        ),
        data=data,
        splits={name: LABELS[name][:examples] for name in validation},
    )
    trained: Any = SimpleNamespace(logged=LOGGED)
    metrics = {split: {"eval_accuracy": reached[split]} for split in validation}
    return _scores(parts, trained, metrics)


def test_without_loading_the_best_the_model_left_is_the_last() -> None:
    run = scores_of(best_loaded=False, validation_matched=0.7, validation_mismatched=0.6)
    matched, mismatched = run.values()
    assert matched["saved"] == matched["last"] == {"accuracy": 0.7}
    assert (matched["best"], matched["best_epoch"]) == ({"accuracy": 0.9}, 2.0)
    assert mismatched["saved"] == mismatched["last"] == {"accuracy": 0.6}
    assert mismatched["best"] is None


def test_with_the_best_loaded_last_is_not_the_best() -> None:
    run = scores_of(best_loaded=True, validation_matched=0.9, validation_mismatched=0.8)
    matched, mismatched = run.values()
    assert (matched["saved"], matched["last"]) == ({"accuracy": 0.9}, {"accuracy": 0.7})
    # Of the other set only what the model left reaches is known, and that is the best epoch's.
    assert (mismatched["saved"], mismatched["last"]) == ({"accuracy": 0.8}, None)
    assert (mismatched["best"], mismatched["best_epoch"]) == ({"accuracy": 0.8}, 2.0)


def test_a_model_chosen_by_its_loss_is_not_called_the_best_by_accuracy() -> None:
    run = scores_of(
        best_loaded=True, chosen_by="loss", validation_matched=0.5, validation_mismatched=0.4
    )
    matched, mismatched = run.values()
    assert (matched["saved"], matched["best"]) == ({"accuracy": 0.5}, {"accuracy": 0.9})
    assert mismatched["best"] is None


@pytest.mark.parametrize(
    ("examples", "majority", "warned"),
    # The first two are both of the class that is the most frequent in training.
    [(None, 0.5, False), (2, 1.0, True)],
)
def test_the_guard_compares_with_the_baseline_on_the_examples_that_were_evaluated(
    examples: int | None, majority: float, warned: bool
) -> None:
    run = scores_of(
        best_loaded=False, examples=examples, validation_matched=0.9, validation_mismatched=1.0
    )
    scores = {"validation_matched": run["validation_matched"]}
    assert scores["validation_matched"]["majority"] == majority
    found = [one["kind"] for one in find_warnings(Evidence(scores=scores))]
    assert ("no_better_than_majority" in found) is warned


def adapted(lora_type: str) -> tuple[nn.Module, Any]:
    layer = LORA_KINDS[lora_type].layer.from_linear(nn.Linear(4, 4), r=2, lora_alpha=4)
    return nn.Sequential(layer), layer


@pytest.mark.parametrize("anchored", [False, True])
@pytest.mark.parametrize("lora_type", LORA_KINDS)
def test_whether_anything_was_learnt_is_told_without_the_base(
    lora_type: str, anchored: bool
) -> None:
    """As after --shard_base, where no process has a whole weight to compute with."""
    model, layer = adapted(lora_type)
    if anchored:
        nn.init.normal_(layer.factors()[layer.ZERO_FACTOR])
        layer.anchor()
    layer.weight = nn.Parameter(torch.empty(4, 4, device="meta"), requires_grad=False)
    assert _update_is_zero(model, moved=False)
    assert _update_is_zero(model, moved=True) == (lora_type != "dora")
    with torch.no_grad():
        layer.factors()[layer.ZERO_FACTOR].add_(1.0)
    assert not _update_is_zero(model, moved=True)
    assert not _update_is_zero(nn.Linear(2, 2), moved=True)


class AppleGPU(TorchFunctionMode):  # type: ignore[misc]
    """Refuses float64 sums of what was not brought to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.on_host: list[Tensor] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        there = all(args[0] is not tensor for tensor in self.on_host) if args else True
        if (kwargs or {}).get("dtype") == torch.float64 and there:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        result = function(*args, **(kwargs or {}))
        if function is Tensor.cpu:
            self.on_host.append(result)
        return result


def test_a_models_fingerprint_takes_no_float64_of_the_device() -> None:
    model, layer = adapted("svd")
    before = fingerprint(model)
    with AppleGPU():
        assert fingerprint(model) == before
    with torch.no_grad():
        layer.lora_A[0, 0] += 1e-6
    assert fingerprint(model) != before
    assert isinstance(layer, loralib.SVDLinear)

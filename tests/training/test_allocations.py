"""The history of an allocation: bounded, with its ends, and the same after any resume."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from adalora.storage.nested import load_state, save_state
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.allocation_history import MOST_ALLOCATIONS, AllocationHistory
from adalora.training.callbacks import TrainingTime
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]


def survivors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        f"layer.{index}.lora_E": torch.rand(rank, generator=generator) < 0.5
        for index, rank in enumerate((4, 2, 3))
    }


def note(history: AllocationHistory, steps: range) -> None:
    for step in steps:
        threshold = None if step < 20 else torch.tensor(step / 7)
        history.note(step, 1000 - step, threshold, survivors(step))


@pytest.mark.parametrize("total", [1, 30, 199, 200, 201, 5000])
def test_at_most_two_hundred_are_kept_evenly_and_both_ends_with_them(total: int) -> None:
    history = AllocationHistory(total)
    note(history, range(total))
    entries = history.entries()
    steps = [entry["step"] for entry in entries]
    assert len(steps) == len(set(steps)) <= MOST_ALLOCATIONS
    assert (steps[0], steps[-1]) == (0, total - 1)
    assert len(steps) >= min(total, MOST_ALLOCATIONS // 2)
    gaps = {after - before for before, after in pairwise(steps[:-1])}
    assert len(gaps) <= 1


def test_an_entry_is_what_was_allocated() -> None:
    history = AllocationHistory(30)
    note(history, range(30))
    for entry in history.entries():
        step = entry["step"]
        counts = {k.removesuffix(".lora_E"): int(v.sum()) for k, v in survivors(step).items()}
        assert entry["ranks"] == counts
        assert entry["budget"] == 1000 - step
        assert entry["threshold"] == (None if step < 20 else pytest.approx(step / 7))


@pytest.mark.parametrize("stop", [1, 7, 30, 31, 299])
def test_a_resumed_history_is_the_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    total = 300
    whole, first, second = (AllocationHistory(total) for _ in range(3))
    note(whole, range(total))
    note(first, range(stop))
    save_state({"history": first.state_dict()}, tmp_path / "state.safetensors")
    second.load_state_dict(load_state(tmp_path / "state.safetensors")["history"])
    assert second.entries() == first.entries()
    note(second, range(stop, total))
    assert second.entries() == whole.entries()


def test_before_the_first_allocation_there_is_nothing(tmp_path: Path) -> None:
    history = AllocationHistory(10)
    assert history.entries() == []
    note(history, range(3))
    history.load_state_dict(AllocationHistory(10).state_dict())
    assert history.entries() == []


def test_a_trainer_that_was_resumed_has_the_whole_history(
    make_model: Make, make_arguments: Make, examples: list[Any], tmp_path: Path
) -> None:
    settings = AdaLoraSettings(target_rank=1, init_warmup=2, final_warmup=4, mask_interval=2)

    def trainer(name: str, **changes: Any) -> AdaLoraTrainer:
        model = make_model(init_rank=2)
        return AdaLoraTrainer(
            model=model,
            args=make_arguments(root_output_dir=str(tmp_path / name), **changes),
            adaptation=AdaLora(model, settings),
            train_dataset=examples,
        )

    whole = trainer("whole", save_strategy="steps", save_steps=7)
    whole.train()
    checkpoint = tmp_path / "whole" / "model" / "checkpoint-7"
    resumed = trainer("resumed")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    one, two = whole.adaptation, resumed.adaptation
    assert one is not None
    assert two is not None
    entries = one.history.entries()
    assert entries == two.history.entries()
    assert [entry["step"] for entry in entries] == [4, 6, 8, 9, 10, 11]
    ranks = {name.removesuffix(".lora_E"): rank for name, rank in one.rank_pattern().items()}
    assert entries[-1]["ranks"] == ranks
    # Those that survived are those that matter most.
    importance = one.importance()
    assert {name: len(scores) for name, scores in importance.items()} == dict.fromkeys(ranks, 2)
    assert all(scores == sorted(scores, reverse=True) for scores in importance.values())
    kept = [score for name, scores in importance.items() for score in scores[: ranks[name]]]
    lost = [score for name, scores in importance.items() for score in scores[ranks[name] :]]
    assert min(kept) >= max(lost)
    # The resumed run's time counts on from the checkpoint's.
    stored = TrainingTime.of(whole).seconds
    assert 0 < TrainingTime.of(resumed).seconds < 2 * stored
    state = resumed.state.stateful_callbacks["TrainingTime"]["args"]
    assert TrainingTime.of(resumed).seconds > state["seconds"] > 0
    assert TrainingTime.of(resumed).since_epoch == 0

"""LoRA+: who learns faster, what else of the optimizer stays as it was, and resuming."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adalora.errors import UserError
from adalora.storage.snapshots import snapshots
from adalora.training.trainer import AdaLoraTrainer

Make = Callable[..., Any]
FAST = {"frd": "lora_B", "dora": "lora_B", "svd": "lora_E"}


@pytest.fixture
def build(make_model: Make, make_arguments: Make, examples: list[Any], tmp_path: Path) -> Make:
    def make(name: str, lora_type: str, ratio: float, **changes: Any) -> AdaLoraTrainer:
        return AdaLoraTrainer(
            model=make_model(lora_type=lora_type, dropout=0.1),
            args=make_arguments(root_output_dir=str(tmp_path / name), **changes),
            lora_plus_ratio=ratio,
            train_dataset=examples,
        )

    return make


def groups(trainer: AdaLoraTrainer) -> dict[str, tuple[float, float]]:
    """Parameter -> (learning rate, weight decay)."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimizer = trainer.create_optimizer()
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("lora_type", list(FAST))
def test_the_factor_that_starts_at_zero_learns_faster_and_nothing_else_changes(
    build: Make, lora_type: str
) -> None:
    plain = groups(build("plain", lora_type, 1.0, weight_decay=0.1))
    raised = groups(build("raised", lora_type, 16.0, weight_decay=0.1))
    assert plain.keys() == raised.keys()
    fast = {name for name in plain if raised[name] != plain[name]}
    assert fast == {name for name in plain if name.endswith(FAST[lora_type])}
    assert {plain[name][1] for name in plain} == {0.0, 0.1}
    for name in fast:
        assert raised[name] == (pytest.approx(16 * plain[name][0]), plain[name][1])


def test_a_step_of_sgd_is_longer_by_the_ratio(build: Make) -> None:
    def moved(ratio: float) -> dict[str, torch.Tensor]:
        flags = {"optim": "sgd", "max_steps": 1, "lr_scheduler_type": "constant", "seed": 3}
        trainer = build(f"run-{ratio}", "frd", ratio, **flags)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        return {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}

    one, four = moved(1.0), moved(4.0)
    for name in one:
        factor = 4 if name.endswith("lora_B") else 1
        torch.testing.assert_close(four[name], factor * one[name], rtol=1e-3, atol=1e-6)
    assert any(one[name].any() for name in one if name.endswith("lora_B"))


@pytest.mark.parametrize("lora_type", ["frd", "svd"])
def test_a_resumed_run_ends_as_one_that_never_stopped(
    build: Make, tmp_path: Path, lora_type: str
) -> None:
    flags = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, "weight_decay": 0.1}
    whole = build("whole", lora_type, 8.0, **flags)
    whole.train()
    first = snapshots(Path(str(whole.args.output_dir)))[0]
    resumed = build("resumed", lora_type, 8.0, **flags)
    shutil.copytree(first, Path(str(resumed.args.output_dir)) / first.name)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    for (name, mine), theirs in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    other = build("other", lora_type, 2.0, **flags)
    with pytest.raises(UserError, match=r"lora_plus_ratio: there 8\.0, here 2\.0"):
        other.train(resume_from_checkpoint=str(first))

"""What two real processes refuse that would not be one job, or not see one disk; all must agree."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from adalora.errors import UserError
from adalora.storage.atomic import locked_folder
from adalora.storage.snapshots import publish, staging_folder
from adalora.training.arguments.training import AdaLoraTrainingArguments
from adalora.training.folders import find_checkpoint, hold_folder
from adalora.training.trainer import AdaLoraTrainer

NOT_ONE_JOB = "did not become one job"


def refusal(make: Callable[[], Any]) -> str:
    """The sentence that ``make`` is refused with."""
    try:
        made = make()
    except UserError as error:
        return str(error)
    raise AssertionError(made)


def refuse(folder: Path) -> None:
    """Try in each of two processes what must end in all of them, with a reason."""
    rank = int(os.environ["RANK"])
    ours: dict[str, Any] = {"report_to": "none", "do_train": True}

    # As from a user's own script, whose TrainingArguments lack use_cpu.
    stock = transformers.TrainingArguments(output_dir=str(folder), report_to="none")
    assert stock.world_size == 1, "the installed Trainer has become wiser: the check can go"
    model = torch.nn.Linear(2, 2)
    assert NOT_ONE_JOB in refusal(lambda: AdaLoraTrainer(model=model, args=stock))
    choose_device = AdaLoraTrainingArguments._choose_device
    AdaLoraTrainingArguments._choose_device = lambda self: None  # type: ignore[method-assign]
    alone = refusal(lambda: AdaLoraTrainingArguments(root_output_dir=str(folder), **ours))
    assert NOT_ONE_JOB in alone
    AdaLoraTrainingArguments._choose_device = choose_device  # type: ignore[method-assign]

    # Each process has a disk of its own, and the first alone has a checkpoint on it.
    root = folder / f"disk-{rank}"
    arguments = AdaLoraTrainingArguments(root_output_dir=str(root), **ours)
    assert arguments.world_size == 2
    arguments.resume_from_checkpoint = str(root / "model" / "checkpoint-3")
    if rank == 0:
        target = root / "model" / "checkpoint-3"
        staging_folder(target).mkdir(parents=True)
        publish(target, step=3, settings={})
    reason = refusal(lambda: find_checkpoint(arguments))
    assert "process 1 on" in reason, reason
    assert "cannot see it" in reason, reason

    # What the first process finds wrong ends them all.
    arguments.resume_from_checkpoint = str(folder / "absent")
    assert "is not a checkpoint's folder" in refusal(lambda: find_checkpoint(arguments))
    together = AdaLoraTrainingArguments(root_output_dir=str(folder / "run"), **ours)
    (folder / "run").mkdir(exist_ok=True)
    if rank == 0:
        with locked_folder(folder / "run"):
            reason = refusal(lambda: hold_folder(together).__enter__())
    else:
        reason = refusal(lambda: hold_folder(together).__enter__())
    assert "is in use by process" in reason, reason
    (folder / f"refused-{rank}").touch()

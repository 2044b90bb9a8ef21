"""Small models and data that the training tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import deberta_v3_config
from transformers import DebertaV2ForSequenceClassification

from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.training.arguments.training import AdaLoraTrainingArguments


def tiny_model(
    *, lora_type: str = "svd", init_rank: int = 2, dropout: float = 0.0
) -> DebertaV2ForSequenceClassification:
    """A DeBERTaV3 of a few thousand parameters with adapters on it."""
    torch.manual_seed(0)
    config = deberta_v3_config(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=2,
    )
    model = DebertaV2ForSequenceClassification(config)
    add_lora(
        model,
        lora_type=lora_type,
        targets=["query", "key", "value", "intermediate", "layer.output", "attention.output"],
        init_rank=init_rank,
        lora_alpha=8,
    )
    freeze_base(model, train=["lora"])
    return model


@pytest.fixture
def make_model() -> Callable[..., Any]:
    return tiny_model


@pytest.fixture
def examples() -> list[dict[str, Any]]:
    """Forty-eight sequences of one length whose label is whether token 5 occurs."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, 60, (48, 12), generator=generator)
    ids[::2, 3] = 5
    return [{"input_ids": row, "labels": int((row == 5).any())} for row in ids]


@pytest.fixture
def make_arguments(tmp_path: Path) -> Callable[..., AdaLoraTrainingArguments]:
    def make(**changes: Any) -> AdaLoraTrainingArguments:
        values: dict[str, Any] = {
            "root_output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "max_steps": 12,
            "learning_rate": 5e-3,
            "report_to": "none",
            "disable_tqdm": True,
            "no_cuda": True,
            "save_strategy": "no",
            "logging_steps": 4,
        }
        return AdaLoraTrainingArguments(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def launch() -> Callable[..., None]:
    """Run a program with these words, which no launcher has started; it must end well."""

    def run(program: Path, *words: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(sys.path)}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, str(program), *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    return run


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own at ``folder``; the test is skipped where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"needs a file system of its own, and mounting is refused: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written to; permission bits do not stop root, a mount does."""
    folder = tmp_path / "read-only"
    if os.geteuid() == 0:
        with mounted(folder, "ro") as mount:
            yield mount
    else:
        folder.mkdir(mode=0o500)
        yield folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 700 KB: room for a checkpoint or two of the tiny model."""
    with mounted(tmp_path / "disk", "size=700k") as mount:
        yield mount

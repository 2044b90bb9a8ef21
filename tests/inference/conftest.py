"""One real run of the example program, and artefacts of other kinds on the same base."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.artefact.description import Description
from adalora.artefact.writer import save_artefact
from adalora.pretrained.loading import load_classifier, load_tokenizer

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
FLAGS = (
    *("--model_name_or_path", "nano", "--task_name", "mini-mnli", "--do_train", "--do_eval"),
    *("--apply_lora", "--apply_adalora", "--lora_type", "svd", "--lora_module", ",".join(NAMES)),
    *("--lora_r", "2", "--target_rank", "1", "--reg_orth_coef", "0.1"),
    *("--init_warmup", "2", "--final_warmup", "4", "--mask_interval", "2"),
    *("--per_device_train_batch_size", "8", "--learning_rate", "2e-3", "--max_seq_length", "48"),
    *("--max_steps", "12", "--max_val_samples", "64", "--seed", "6", "--disable_tqdm", "True"),
    *("--save_steps", "6", "--report_to", "none"),
)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For processes of the tests: one thread, no network, the tree under test."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def train(project_root: Path, environment: dict[str, str]) -> Callable[..., Path]:
    """Runs the example program for a dozen steps: ``train(folder, *flags)``."""

    def run(root: Path, *flags: str) -> Path:
        program = project_root / "examples" / "text-classification" / "run_glue.py"
        done = subprocess.run(
            [sys.executable, str(program), *FLAGS, "--root_output_dir", str(root), *flags],
            capture_output=True,
            text=True,
            env=environment,
            cwd=project_root,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return root

    return run


@pytest.fixture(scope="session")
def mnli(tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Path]) -> Path:
    """The folder of a finished AdaLoRA run on pairs with three labels."""
    return train(tmp_path_factory.mktemp("runs") / "mnli")


Make = Callable[..., Path]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Writes an artefact over ``nano`` whose trained parameters are random: ``make("bitfit")``.

    The same arguments give the same folder; no test changes it.
    """

    @functools.cache
    def build(
        method: str = "lora",
        *,
        labels: tuple[str, ...] | None = ("no", "yes"),
        columns: tuple[str, ...] | None = ("text",),
        task: str | None = None,
        rank: int = 3,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **model_settings: Any,
    ) -> Path:
        torch.manual_seed(seed)
        model = load_classifier(
            "nano",
            num_labels=1 if labels is None else len(labels),
            labels=labels,
            is_regression=labels is None,
            dtype=dtype,
            **model_settings,
        )
        if method in ("lora", "frd"):
            lora_type = "svd" if method == "lora" else "frd"
            add_lora(model, lora_type=lora_type, targets=NAMES, init_rank=rank, lora_alpha=8)
        if method == "bottleneck":
            add_bottleneck(model, adapter_type="houlsby", adapter_size=4)
        freeze_base(model, train="lora" if method == "frd" else method)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        folder: Path = tmp_path_factory.mktemp(method)
        save_artefact(
            folder,
            model,
            tokenizer=load_tokenizer("nano"),
            description=Description.of(
                model,
                base_model="nano",
                method=method,
                task=task,
                labels=labels,
                is_regression=labels is None,
                text_columns=columns,
                max_seq_length=32,
            ),
        )
        return folder

    return build

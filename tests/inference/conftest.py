"""One real run of the example program, and artefacts of other kinds on the same base."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.program import mnli_run

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.artefact.description import Description
from adalora.artefact.writer import save_artefact
from adalora.pretrained.loading import load_classifier, load_tokenizer

NAMES = ("query", "key", "value", "intermediate", "layer.output", "attention.output")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """For processes of the tests: one thread, no network, the tree under test."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def mnli(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished AdaLoRA run on pairs with three labels; no test changes it."""
    return mnli_run(tmp_path_factory)[0]


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
        longest: int = 512,
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
        tokenizer = load_tokenizer("nano")
        tokenizer.model_max_length = longest
        save_artefact(
            folder,
            model,
            tokenizer=tokenizer,
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

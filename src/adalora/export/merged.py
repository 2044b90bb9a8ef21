"""``merged``: the folder that ``save_pretrained`` writes, for ``from_pretrained`` and pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForSequenceClassification

from adalora.adapters.merge import merged_model
from adalora.artefact.reader import Artefact
from adalora.export.low_rank import refuse_bottleneck, refuse_bypass, refuse_peft
from adalora.export.verify import predictor

if TYPE_CHECKING:
    from adalora.export.formats import Predict

__all__ = ["read", "refuse", "usage", "write"]


def refuse(artefact: Artefact) -> None:
    """Refuse what no plain weight can hold; BitFit and full fine-tuning are plain already."""
    refuse_peft(artefact.description, "merged")
    refuse_bottleneck(artefact.description, "merged")
    refuse_bypass(artefact.description, "merged")


def write(artefact: Artefact, target: Path) -> None:
    """Configuration with the labels, weights, tokenizer."""
    merged_model(artefact.model).save_pretrained(target)
    if artefact.tokenizer is not None:
        artefact.tokenizer.save_pretrained(target)


def read(artefact: Artefact, target: Path) -> Predict:
    """By transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32)
    return predictor(model)


def usage(artefact: Artefact, target: Path) -> str:
    """A pipeline."""
    return f"""transformers.pipeline("text-classification", model="{target}")"""

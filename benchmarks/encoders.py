"""The training step of an encoder that is no DeBERTa: BERT in the shape of MiniLM-L6."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from adalora.pretrained.dropout import use_fast_dropout
from adalora.pretrained.sdpa import use_fast_attention
from benchmarks.contenders import (
    PEFT_TARGETS,
    VOCABULARY,
    Step,
    adalora_on,
    batch_of,
    peft_adalora_on,
)
from benchmarks.timing import alternate

#: BERT's names of the same layers.
BERT_TARGETS = [name.removesuffix("_proj") for name in PEFT_TARGETS]
LENGTHS = [24, 40, 56, 72] * 8  # a batch of 32, padded to its longest


def measure(*, rounds: int, precisions: Sequence[str]) -> dict[str, Any]:
    """Seconds per step of ours, of ours with transformers' dropout and attention, of PEFT's."""
    result: dict[str, Any] = {"layers": 6, "batch": len(LENGTHS), "padded to": max(LENGTHS)}
    for precision in precisions:
        steps: dict[str, Step] = {
            "ours": adalora_on(_with_both(_bert())),
            "ours, transformers' dropout": adalora_on(_bert()),
            "PEFT AdaLoRA": peft_adalora_on(_bert(), BERT_TARGETS),
        }
        batch = batch_of(LENGTHS)
        for step in steps.values():
            step.bf16 = precision == "bfloat16"
        calls = {name: partial(step, batch) for name, step in steps.items()}
        seconds = alternate(calls, rounds=rounds)
        result[precision] = {
            "seconds": seconds,
            "speedup by dropout": seconds["ours, transformers' dropout"] / seconds["ours"],
            "speedup over PEFT AdaLoRA": seconds["PEFT AdaLoRA"] / seconds["ours"],
        }
    return result


def _bert() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config).train()


def _with_both(model: BertForSequenceClassification) -> BertForSequenceClassification:
    use_fast_attention(model)
    use_fast_dropout(model)
    return model

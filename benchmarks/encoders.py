"""The training step of encoders that are no DeBERTa, at the lengths that texts have.

Ours on the real tokens, and with padding; PEFT's AdaLoRA and LoRA on transformers' model, each
batch padded to its longest text. BERT in the shape of MiniLM-L6, and two layers of MPNet-base.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    MPNetConfig,
    PreTrainedConfig,
)

from adalora.pretrained.dropout import use_fast_dropout
from adalora.pretrained.unpadded import unpad_encoder
from benchmarks.contenders import (
    PEFT_TARGETS,
    TARGETS,
    VOCABULARY,
    Step,
    adalora_on,
    in_turn,
    peft_adalora_on,
    peft_lora_on,
)
from benchmarks.tasks import BATCH, TASKS, lengths_of
from benchmarks.timing import alternate

#: Encoder -> its configuration, and the names of one set of layers for us and for PEFT.
ENCODERS: dict[str, tuple[PreTrainedConfig, Sequence[str], Sequence[str]]] = {
    "MiniLM-L6": (
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
        ),
        TARGETS,
        [name.removesuffix("_proj") for name in PEFT_TARGETS],
    ),
    "MPNet-base": (
        MPNetConfig(vocab_size=VOCABULARY, num_hidden_layers=2),
        ["re:.*[.](q|k|v|o|dense)"],
        ["q", "k", "v", "o", "intermediate.dense", "output.dense"],
    ),
}


def measure(
    *, rounds: int, precisions: Sequence[str], data_dir: Path | None, tokenizer: str | None
) -> Iterator[dict[str, Any]]:
    """Per encoder and task: seconds of a step, and ours against each of the others.

    Without GLUE's files and a tokenizer the lengths are drawn, about as MNLI's are.
    """
    batches = _batches(rounds, data_dir, tokenizer)
    result: dict[str, Any] = {"batch": BATCH}
    for precision in precisions:
        for name in ENCODERS:
            steps = _steps(name)
            for step in steps.values():
                step.bf16 = precision == "bfloat16"
            rows: dict[str, Any] = {}
            found = result.setdefault(precision, {})[name] = {"tasks": rows}
            for task, lengths in batches.items():
                calls = {who: in_turn(step, lengths) for who, step in steps.items()}
                seconds = alternate(calls, rounds=rounds)
                rows[task] = {
                    "tokens": sum(map(sum, lengths)) / len(lengths),
                    "padded": sum(BATCH * max(batch) for batch in lengths) / len(lengths),
                    "seconds": seconds,
                    "speedup": {who: taken / seconds["ours"] for who, taken in seconds.items()},
                }
                found["geometric mean of the speedup"] = {
                    who: statistics.geometric_mean(row["speedup"][who] for row in rows.values())
                    for who in seconds
                    if who != "ours"
                }
                yield result


def _batches(
    rounds: int, data_dir: Path | None, tokenizer: str | None
) -> dict[str, list[list[int]]]:
    """Task -> the lengths of each batch, one for the warm-up and one for each round."""
    count = BATCH * (rounds + 1)
    if data_dir is None or tokenizer is None:
        draw = random.Random(0)
        lengths = {"drawn": [min(128, 8 + int(draw.gammavariate(4, 8))) for _ in range(count)]}
    else:
        encoder = AutoTokenizer.from_pretrained(tokenizer)
        lengths = {task: lengths_of(task, data_dir, encoder, count=count) for task in TASKS}
    return {
        task: [found[i : i + BATCH] for i in range(0, count, BATCH)]
        for task, found in lengths.items()
    }


def _steps(name: str) -> dict[str, Step]:
    config, ours, peft = ENCODERS[name]

    def model(*, unpad: bool | None = None) -> Any:
        """As transformers makes it, in training mode; with ``unpad`` as a run builds it."""
        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_config(config).train()
        if unpad is not None:
            unpad_encoder(made, unpad=unpad)
            use_fast_dropout(made)
        return made

    return {
        "ours": adalora_on(model(unpad=True), targets=ours),
        "ours, padded": adalora_on(model(unpad=False), targets=ours),
        "PEFT AdaLoRA": peft_adalora_on(model(), peft),
        "PEFT LoRA": peft_lora_on(model(), peft),
    }

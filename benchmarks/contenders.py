"""The models that are compared, in the shape of DeBERTaV3-base, and one training step of each.

Weights are random: time does not depend on them. ``layers`` shrinks the depth; every layer costs
the same, so ratios hold, but for embeddings and head, which weigh more in a shallow model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.pretrained.deberta.patch import patch
from adalora.training.adaptation import AdaLora, AdaLoraSettings

__all__ = [
    "CONTENDERS",
    "Step",
    "adalora_on",
    "adalora_step",
    "batch_of",
    "cast_base",
    "in_turn",
    "make_config",
    "make_model",
    "peft_adalora_on",
    "peft_lora_on",
]

TARGETS = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
PEFT_TARGETS = [
    "query_proj",
    "key_proj",
    "value_proj",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]
RANK, ALPHA = 8, 16
TOTAL_STEPS = 100_000
VOCABULARY = 2000


def make_config(layers: int, vocabulary: int = VOCABULARY) -> DebertaV2Config:
    """DeBERTaV3-base's shape."""
    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 768,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "max_position_embeddings": 512,
        "problem_type": "single_label_classification",
    }
    return DebertaV2Config(**values)


def make_model(layers: int) -> DebertaV2ForSequenceClassification:
    """DeBERTaV3-base's shape with a small vocabulary, in training mode."""
    torch.manual_seed(0)
    return DebertaV2ForSequenceClassification(make_config(layers)).train()


def batch_of(lengths: Sequence[int], padded_to: int | None = None) -> dict[str, Tensor]:
    """Random texts of these lengths."""
    longest = padded_to or max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": torch.randint(5, VOCABULARY, mask.shape) * mask,
        "attention_mask": mask,
        "labels": torch.randint(0, 2, (len(lengths),)),
    }


def in_turn(
    step: Step, batches: Sequence[Sequence[int]], *, each: int = 1, padded_to: int | None = None
) -> Callable[[], None]:
    """A call that takes ``each`` steps, on the next batches (their lengths), over and over."""
    turn = cycle(batches)

    def call() -> None:
        for lengths in islice(turn, each):
            step(batch_of(lengths, padded_to))

    return call


class Step:
    """One training step: forward, backward, optimizer, and what the method does after it."""

    def __init__(
        self,
        model: nn.Module,
        *,
        penalty: Callable[[], Tensor] | None = None,
        after: Callable[[int], object] | None = None,
    ) -> None:
        self.model = model
        self.penalty = penalty
        self.after = after
        self.bf16 = False
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None
        self.number = TOTAL_STEPS // 2

    def __call__(self, batch: dict[str, Tensor]) -> None:
        """Run it."""
        device = batch["input_ids"].device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(**batch).loss
        if self.penalty is not None:
            loss = loss + self.penalty()
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
        if self.after is not None:
            self.after(self.number)
        self.number += 1
        if self.optimizer is not None:
            self.optimizer.zero_grad()


def cast_base(step: Step) -> None:
    """What ``--base_dtype bfloat16`` does: frozen weights in half precision."""
    for parameter in step.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()


def adalora_step(layers: int, rank: int = RANK) -> Step:
    """Our AdaLoRA in our model, pruning at every step to half the rank."""
    return adalora_on(patch(make_model(layers)), rank)


def adalora_on(model: nn.Module, rank: int = RANK, targets: Sequence[str] = TARGETS) -> Step:
    """Our AdaLoRA, pruning at every step to half the rank."""
    add_lora(model, lora_type="svd", targets=targets, init_rank=rank, lora_alpha=ALPHA)
    freeze_base(model, train=["lora"])
    settings = AdaLoraSettings(
        target_rank=rank // 2, init_warmup=10, final_warmup=10, mask_interval=1
    )
    adaptation = AdaLora(model, settings)
    adaptation.begin(TOTAL_STEPS)
    allocator = adaptation.allocator
    assert allocator is not None
    # Past AdaLora.step, which takes no step twice, nor one without those before it.
    allocate = partial(allocator.update_and_mask, model)
    return Step(model, penalty=adaptation.penalty, after=allocate)


def _ours_lora(layers: int) -> Step:
    """Plain LoRA of the same initial rank in our model."""
    model = patch(make_model(layers))
    add_lora(model, lora_type="frd", targets=TARGETS, init_rank=RANK, lora_alpha=ALPHA)
    freeze_base(model, train=["lora"])
    return Step(model)


def _frozen(layers: int) -> Step:
    """Our model without adapters; the gradient goes all the way to the embeddings."""
    model = patch(make_model(layers))
    model.requires_grad_(False)
    # What a first layer's input would get from adapters below it: the backward pass through every
    # activation, and nothing for any weight.
    embeddings: Any = model.deberta.embeddings
    embeddings.register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    return Step(model)


def _peft_adalora(layers: int) -> Step:
    """transformers' model with PEFT's AdaLoRA, pruning at every step."""
    return peft_adalora_on(make_model(layers), PEFT_TARGETS)


def peft_adalora_on(base: Any, targets: Sequence[str]) -> Step:
    """PEFT's AdaLoRA, pruning at every step to half the rank."""
    config = AdaLoraConfig(
        task_type="SEQ_CLS",
        init_r=RANK,
        target_r=RANK // 2,
        tinit=10,
        tfinal=10,
        deltaT=1,
        total_step=TOTAL_STEPS,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=list(targets),
    )
    model: Any = get_peft_model(base, config)
    return Step(model, after=model.base_model.update_and_allocate)


def _peft_lora(layers: int) -> Step:
    """transformers' model with PEFT's LoRA."""
    return peft_lora_on(make_model(layers), PEFT_TARGETS)


def peft_lora_on(base: Any, targets: Sequence[str]) -> Step:
    """PEFT's LoRA of the same initial rank."""
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=list(targets),
    )
    return Step(get_peft_model(base, config))


CONTENDERS: dict[str, Callable[[int], Step]] = {
    "ours": adalora_step,
    "ours, LoRA": _ours_lora,
    "ours, frozen": _frozen,
    "PEFT AdaLoRA": _peft_adalora,
    "PEFT LoRA": _peft_lora,
}

"""One whole training step of any method on a small encoder, for every policy and device of a test.

Forward, loss, penalty, backward, clipping, fused AdamW and the allocator, as the Trainer runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from tests.models import deberta_v3_config, tiny_config
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    DebertaV2ForSequenceClassification,
    PreTrainedModel,
)
from transformers.trainer_pt_utils import LabelSmoother

from adalora.adapters.bottleneck import add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.lora import add_lora
from adalora.pretrained.deberta.patch import patch
from adalora.pretrained.unpadded import unpad_encoder
from adalora.training.adaptation import AdaLora, AdaLoraSettings
from adalora.training.losses import consistency_loss

__all__ = ["METHODS", "MNLI", "Case", "batch", "build", "loss_of", "new_optimizer", "training_step"]

METHODS = ("frd", "svd", "dora", "bottleneck", "bitfit", "full")
TARGETS = ("query", "key", "value", "intermediate", "layer.output", "attention.output")
#: Real lengths of the texts of a batch.
LENGTHS = (9, 5, 12, 3)
#: Those of 32 pairs like MNLI's.
MNLI = (
    *(77, 41, 49, 57, 23, 31, 29, 34, 17, 25, 49, 22, 51, 24, 27, 73),
    *(42, 72, 29, 64, 47, 51, 25, 42, 22, 72, 86, 29, 30, 30, 26, 23),
)
TOTAL_STEPS = 10


@dataclass(frozen=True)
class Case:
    """What one step is made of.

    Attributes:
        method: one of ``METHODS``.
        encoder: ``deberta``, ``bert`` or ``mpnet``.
        unpadded: on the real tokens only.
        low: dtype of autocast, None for none.
        base_dtype: the frozen base's.
        accumulation: backward passes before the optimizer's step.
        checkpointing: recompute activations in the backward pass.
        smoothing: label smoothing factor.
        consistency: weight of the consistency loss.
        late: move the model to its device after the method was begun.
        layers: of the encoder.
        lengths: real tokens of each text of the batch.
        dropout: of hidden states and attention probabilities.
    """

    method: str
    encoder: str = "deberta"
    unpadded: bool = True
    low: torch.dtype | None = torch.bfloat16
    base_dtype: torch.dtype = torch.float32
    accumulation: int = 1
    checkpointing: bool = False
    smoothing: float = 0.0
    consistency: float = 0.0
    late: bool = False
    layers: int = 2
    lengths: tuple[int, ...] = LENGTHS
    dropout: float = 0.0

    def __str__(self) -> str:
        dtype = str(self.low).removeprefix("torch.")
        extras = {
            "bf16-base": self.base_dtype != torch.float32,
            f"{self.accumulation}-passes": self.accumulation > 1,
            "checkpointing": self.checkpointing,
            "smoothing": self.smoothing > 0,
            "consistency": self.consistency > 0,
            "late": self.late,
        }
        way = "unpadded" if self.unpadded else "padded"
        parts = [self.method, self.encoder, way, dtype]
        return "-".join(parts + [name for name, has in extras.items() if has])


def build(
    case: Case, *, prepare: Callable[[nn.Module], None] | None = None
) -> tuple[PreTrainedModel, AdaLora | None]:
    """The adapted model, as a rule without dropout so that two precisions can be compared, and its
    method.

    ``prepare`` moves the model to a device before the method is put over it.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "num_hidden_layers": case.layers,
        "num_labels": 3,
        "problem_type": "single_label_classification",
        "hidden_dropout_prob": case.dropout,
        "attention_probs_dropout_prob": case.dropout,
    }
    model: PreTrainedModel
    if case.encoder == "deberta":
        config = deberta_v3_config(**sizes, pooler_dropout=0.0)
        model = patch(DebertaV2ForSequenceClassification(config), unpad=case.unpadded)
    else:
        config = tiny_config(case.encoder, **sizes, classifier_dropout=0.0)
        model = AutoModelForSequenceClassification.from_config(config)
        unpad_encoder(model, unpad=case.unpadded)
    if case.method in ("frd", "svd", "dora"):
        add_lora(
            model,
            lora_type=cast(Any, case.method),
            targets=("re:.*[.](q|k|v|o|dense)",) if case.encoder == "mpnet" else TARGETS,
            init_rank=4,
            lora_alpha=16,
        )
        freeze_base(model, train=["lora"])
        # Away from the start, where half of the gradients are zero.
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                nn.init.normal_(parameter, std=0.1)
    elif case.method == "bottleneck":
        add_bottleneck(model, adapter_type="houlsby", adapter_size=4)
        freeze_base(model, train=["bottleneck"])
    else:
        freeze_base(model, train=[cast(Any, case.method)])
    if case.base_dtype != torch.float32:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(case.base_dtype)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if prepare is not None and not case.late:
        prepare(model)
    adaptation = None
    if case.method in ("frd", "svd"):
        settings = AdaLoraSettings(
            target_rank=2,
            init_warmup=1,
            final_warmup=2,
            mask_interval=1,
            allocate=case.method == "svd",
        )
        adaptation = AdaLora(model, settings)
        adaptation.begin(TOTAL_STEPS)
    if prepare is not None and case.late:
        prepare(model)
    return model.train(), adaptation


def batch(lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """Token ids, mask and labels of texts of these lengths, on the CPU."""
    torch.manual_seed(1)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 50, (len(lengths), longest)) * mask
    labels = torch.tensor([0, 1, 2, 1]).repeat(len(lengths) // 4)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_of(model: nn.Module, inputs: dict[str, Any], case: Case) -> Tensor:
    """The training loss of one batch, without the penalty."""
    if case.consistency:
        return consistency_loss(model, inputs, inputs["input_ids"], case.consistency)
    output = model(**inputs)
    if case.smoothing:
        smoothed: Tensor = LabelSmoother(epsilon=case.smoothing)(output, inputs["labels"])
        return smoothed
    loss: Tensor = output.loss
    return loss


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Over what is trained; it has no state before its first step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-3, fused=True)


def training_step(
    model: nn.Module,
    adaptation: AdaLora | None,
    inputs: dict[str, Any],
    case: Case,
    *,
    number: int = 5,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take step ``number``; the loss, and the gradients that the optimizer saw."""
    device = next(model.parameters()).device.type
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = optimizer or new_optimizer(model)
    total = None
    for _ in range(case.accumulation):
        with torch.autocast(device, dtype=case.low or torch.bfloat16, enabled=bool(case.low)):
            loss = loss_of(model, inputs, case)
        if adaptation is not None:
            loss = loss + adaptation.penalty()
        (loss / case.accumulation).backward()
        total = loss.detach() if total is None else total + loss.detach()
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
    optimizer.step()
    if adaptation is not None:
        if adaptation.allocator is not None:
            adaptation.allocator.global_step = number - 1  # as if the steps before had been made
        adaptation.step(number)
    assert total is not None
    return total / case.accumulation, gradients

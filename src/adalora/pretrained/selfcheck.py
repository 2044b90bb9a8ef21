"""Our ways through an encoder held against the installed ones, in moments, on any device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from adalora.pretrained.deberta.patch import patch
from adalora.pretrained.unpadded import unpad_encoder

#: Texts of a batch with padding, by their tokens.
_LENGTHS = (23, 5, 40, 1)
_SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}
#: What makes a configuration of type deberta-v2 one of DeBERTaV3.
DEBERTA_V3: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 256,
    "max_relative_positions": -1,
    "pos_att_type": ["c2p", "p2c"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_dropout": 0.0,
}
#: Model type -> what its configuration has in addition, and how our way is taken.
_ENCODERS: dict[str, tuple[dict[str, Any], Callable[[Any], object]]] = {
    "deberta-v2": ({**DEBERTA_V3, "position_buckets": 16}, patch),
    "bert": ({"classifier_dropout": 0.0}, unpad_encoder),
}
ENCODERS = tuple(_ENCODERS)


@dataclass(frozen=True)
class Agreement:
    """How far two ways through an encoder are from the installed one in float64.

    Attributes:
        encoder: model type.
        device: where both were computed.
        precision: "float32", or the dtype of autocast.
        ours: norm of the error of our logits or of all gradients, whichever is larger, over the
            norm of what is right.
        installed: the same for the installed way in the same precision.
        smallest: the precision's own relative error.
    """

    encoder: str
    device: str
    precision: str
    ours: float
    installed: float
    smallest: float

    @property
    def holds(self) -> bool:
        """Whether ours is about as near as the installed way."""
        return self.ours <= 4 * max(self.installed, self.smallest)


def compare_ways(encoder: str, device: torch.device, low: torch.dtype | None = None) -> Agreement:
    """Take a forward and a backward pass of a small model of random weights each way.

    Args:
        encoder: one of ``ENCODERS``.
        device: where to compute; what is right is computed on the CPU.
        low: dtype of autocast; None for float32 without.
    """
    extra, take_our_way = _ENCODERS[encoder]
    config = AutoConfig.for_model(encoder, **_SIZES, **extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).train()
        ids = torch.randint(5, 100, (len(_LENGTHS), max(_LENGTHS)))
    mask = (torch.arange(max(_LENGTHS)) < torch.tensor(_LENGTHS)[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    inputs["labels"] = torch.arange(len(_LENGTHS)) % 3

    exact = _answers(copy.deepcopy(model).double(), inputs, None)
    installed = _answers(copy.deepcopy(model).to(device), inputs, low)
    take_our_way(model)
    ours = _answers(model.to(device), inputs, low)
    precision = low or torch.float32
    return Agreement(
        encoder,
        str(device),
        str(precision).removeprefix("torch."),
        _error(ours, exact),
        _error(installed, exact),
        torch.finfo(precision).eps,
    )


def _answers(
    model: nn.Module, inputs: dict[str, Tensor], low: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    """Logits and all gradients, each in one row of float64 on the CPU."""
    device = next(model.parameters()).device
    there = {name: value.to(device) for name, value in inputs.items()}
    with torch.autocast(device.type, dtype=low or torch.bfloat16, enabled=low is not None):
        output = model(**there)
    output.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    rows = (output.logits.flatten(), torch.cat([gradient.flatten() for gradient in gradients]))
    return rows[0].detach().cpu().double(), rows[1].cpu().double()


def _error(answers: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    pairs = zip(answers, exact, strict=True)
    return max(float((got - right).norm() / right.norm()) for got, right in pairs)

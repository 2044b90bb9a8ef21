"""Every number type, padding and length edge, against the installed model in float64.

The oracle has the very weights that the half-precision model holds, so what differs is computing
alone. Its error is told as a share of the whole: ‖x − exact‖ / ‖exact‖. A result has gone through
some R roundings, one after the other, each of which moves it by at most half an epsilon; they are
independent, so together they move it by √R · ε / 2. Sums are taken in float32 at least; those of a
gradient run over K tokens, whose roundings add up to K · ε₃₂ / 2 where the tokens are alike, as
padding on the left is.
"""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tests.models import NO_DROPOUT, deberta_v3_config
from torch import Tensor
from transformers import DebertaV2ForSequenceClassification

from adalora.adapters.head import widen_head
from adalora.adapters.lora import add_lora
from adalora.pretrained.deberta.packed_attention import Positions, packed_attention
from adalora.pretrained.deberta.packing import Packing
from adalora.pretrained.deberta.patch import patch

NAMES = ["query", "key", "value", "intermediate", "layer.output", "attention.output"]
LAYERS = 2
#: In a layer, in sequence: query, score (three terms and their sum), softmax, context, output, sum
#: and norm, two products and the activation between them, sum and norm; a product counts twice, for
#: the weight that autocast rounds or the adapter that adds to it.
ROUNDINGS = 5 + LAYERS * 20
KINDS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "bfloat16 by autocast": (torch.float32, torch.bfloat16),
    "float16 by autocast": (torch.float32, torch.float16),
}
PADDINGS = ["none", "right", "left", "one token"]
#: Buckets reach to a distance of 64 and the position table to 128; 150 is beyond both.
SHAPES = [(1, "none"), *((length, padding) for length in (2, 128, 150) for padding in PADDINGS)]


def model_of(**changes: Any) -> DebertaV2ForSequenceClassification:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": 64,
        # 12 · 3 terms is a square, and so the installed scale is exact.
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 64,
        "position_buckets": 64,
        "max_relative_positions": 128,
        "max_position_embeddings": 128,
        "initializer_range": 0.05,
        **NO_DROPOUT,
    }
    return DebertaV2ForSequenceClassification(deberta_v3_config(**{**values, **changes})).eval()


def mask_of(padding: str, length: int) -> Tensor:
    mask = torch.ones(3, length, dtype=torch.long)
    short = (length + 1) // 2
    if padding == "right":
        mask[1, short:] = 0
    if padding == "left":
        mask[1, : length - short] = 0
    if padding == "one token":
        mask[0, 1:] = 0
    return mask


def answers(model: Any, mask: Tensor, autocast: torch.dtype | None) -> dict[str, Tensor]:
    """States of real tokens, logits, and the gradient of every adapter, in float64."""
    ids = torch.randint(1, 64, mask.shape, generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    context = nullcontext() if autocast is None else torch.autocast("cpu", dtype=autocast)
    with context:
        result = model(
            ids, attention_mask=mask, labels=torch.tensor([0, 1, 0]), output_hidden_states=True
        )
    # As a gradient scaler does, or float16 would lose the small ones.
    scale = 2.0**8
    (result.loss * scale).backward()
    gradients = [
        p.grad.double().flatten() / scale for p in model.parameters() if p.grad is not None
    ]
    return {
        "states": result.hidden_states[-1][mask.bool()].double(),
        "logits": result.logits.double(),
        "gradients": torch.cat(gradients),
    }


@pytest.mark.parametrize(("length", "padding"), SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_that_of_the_number_type(kind: str, length: int, padding: str) -> None:
    stored, autocast = KINDS[kind]
    model = model_of().to(stored)
    widen_head(model)
    exact = copy.deepcopy(model).double()
    patch(model)
    for one in (model, exact):
        torch.manual_seed(1)
        add_lora(one, lora_type="svd", targets=NAMES, init_rank=2, lora_alpha=8)
        one.requires_grad_(False)
        for name, parameter in one.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
                parameter.data = (0.1 * drawn).to(parameter.dtype)
                parameter.requires_grad_(True)
    mask = mask_of(padding, length)
    expected, got = answers(exact, mask, None), answers(model, mask, autocast)
    epsilon = torch.finfo(autocast or stored).eps
    sums = length * torch.finfo(torch.float32).eps / 2
    bounds = {
        "states": math.sqrt(ROUNDINGS) * epsilon / 2,
        "logits": math.sqrt(ROUNDINGS) * epsilon / 2,
        "gradients": math.sqrt(2 * ROUNDINGS) * epsilon / 2 + sums,
    }
    for name, bound in bounds.items():
        error = (got[name] - expected[name]).norm() / expected[name].norm()
        assert error <= bound, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_beyond_float16_give_scores_within_it(dtype: torch.dtype) -> None:
    """q · k is 80,000 here, which float16 does not have; the score is a fifth of it."""
    width, heads = 8, 2
    packing = Packing.of(mask_of("one token", 5))
    assert packing is not None
    states = torch.full((len(packing.tokens), heads, width), 100.0, dtype=dtype)
    table = torch.full((heads, 9, width), 100.0, dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in (states, states, states, table, table)]
    out = packed_attention(
        *leaves,
        groups=packing.groups,
        positions=Positions(torch.arange(9)),
        scale=math.sqrt(3 * width),
    )
    out.sum().backward()
    torch.testing.assert_close(out, states, rtol=torch.finfo(dtype).eps, atol=0)
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)

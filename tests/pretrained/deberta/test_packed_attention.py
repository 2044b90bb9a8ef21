"""The fast attention against the readable reference: outputs, gradients, dropout, any lengths."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.pretrained.deberta.packed_inputs import (
    HEADS,
    WIDTH,
    inputs_of,
    mask_of,
    positions_of,
    reference,
)
from torch import Tensor

from adalora.pretrained.deberta.packed_attention import Positions, packed_attention
from adalora.pretrained.deberta.packing import Packing
from adalora.pretrained.deberta.reference import relative_buckets
from adalora.pretrained.deberta.whole_batch_attention import Sequences, whole_batch_attention
from adalora.pretrained.dropout import keep_mask

PACKED = ("query", "key", "value")
#: The attention of a CPU, by groups, and the padded one of an accelerator without Triton.
WAYS = ("groups", "whole batch")


def attend(
    way: str, leaves: dict[str, Any], packing: Packing, positions: Positions, dropout: float = 0.0
) -> Tensor:
    options: dict[str, Any] = {"scale": math.sqrt(WIDTH * 3), "dropout": dropout}
    if way == "whole batch":
        sequences = Sequences.of(packing, positions)
        return whole_batch_attention(**leaves, sequences=sequences, **options)
    return packed_attention(**leaves, groups=packing.groups, positions=positions, **options)


def compare(
    mask: Tensor,
    *,
    way: str = "groups",
    buckets: int = 8,
    maximum: int = 64,
    without: tuple[str, ...] = (),
    recurring: bool = False,
    tolerance: float = 1e-12,
) -> None:
    """Output and every gradient, in float64."""
    span = buckets if buckets > 0 else maximum
    packing = Packing.of(mask, recurring=recurring)
    assert packing is not None
    drawn = inputs_of(len(packing.rows), span)
    named: dict[str, Any] = {name: None if name in without else x for name, x in drawn.items()}
    tokens = len(packing.tokens)
    results = []
    for fast in (True, False):
        leaves = {
            name: None if x is None else x.clone().requires_grad_() for name, x in named.items()
        }
        if fast:
            positions = positions_of(packing.longest, buckets, maximum, span)
            # Nothing reads rows that hold no token.
            out = attend(way, leaves, packing, positions)[:tokens]
        else:
            table = relative_buckets(mask.shape[1], buckets=buckets, max_position=maximum)
            of_tokens = {
                name: x[:tokens] if x is not None and name in PACKED else x
                for name, x in leaves.items()
            }
            out = reference(of_tokens, mask, table)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        (out * weights).sum().backward()
        results.append([out, *(x.grad for x in leaves.values() if x is not None)])
    for got, expected in zip(*results, strict=True):
        scale = expected.abs().max().item() + 1e-30
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * max(scale, 1.0))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 128, 300, 1024])
def test_one_sequence_of_any_length(length: int, way: str) -> None:
    compare(mask_of([length]), way=way, buckets=32, maximum=512)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("buckets", [-1, 4, 32])
@pytest.mark.parametrize("maximum", [16, 64])
def test_linear_and_logarithmic_positions_and_those_beyond_the_table(
    buckets: int, maximum: int, way: str
) -> None:
    compare(mask_of([70, 41]), way=way, buckets=buckets, maximum=maximum)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "lengths", [[5, 5, 5], [9, 8, 9, 1], [1, 30, 2, 29, 3, 28], [64, 1, 100, 90], [7] * 40]
)
@pytest.mark.parametrize("longest", [None, 110])
@pytest.mark.parametrize("recurring", [False, True])
def test_batches_of_mixed_lengths(
    lengths: list[int], longest: int | None, recurring: bool, way: str
) -> None:
    compare(mask_of(lengths, longest), recurring=recurring, way=way)


@pytest.mark.parametrize("recurring", [False, True])
def test_gaps_keep_their_distance(recurring: bool) -> None:
    mask = mask_of([20, 17, 20])
    mask[0, 3:7] = 0
    mask[2, 5::2] = 0
    compare(mask, recurring=recurring)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "without", [("position_key",), ("position_query",), ("position_key", "position_query")]
)
def test_models_without_a_position_term(without: tuple[str, ...], way: str) -> None:
    compare(mask_of([33, 20, 70]), without=without, way=way)


def test_dropout_with_the_same_mask() -> None:
    mask = mask_of([40, 40])
    packing = Packing.of(mask)
    assert packing is not None
    assert len(packing.groups) == 1
    drawn = inputs_of(80, 8)
    torch.manual_seed(3)
    kept = keep_mask(torch.empty(HEADS, 2, 40, 40), 0.25).transpose(0, 1)
    results = []
    for fast in (True, False):
        leaves: dict[str, Any] = {name: x.clone().requires_grad_() for name, x in drawn.items()}
        if fast:
            torch.manual_seed(3)
            positions = positions_of(40, 8, 64, 8)
            out = packed_attention(
                **leaves,
                groups=packing.groups,
                positions=positions,
                scale=math.sqrt(WIDTH * 3),
                dropout=0.25,
            )
        else:
            table = relative_buckets(40, buckets=8, max_position=64)
            out = reference(leaves, mask, table, factors=kept.double() / 0.75)
        out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves.values())])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11 * expected.abs().max().item())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("dtype", "factor"), [(torch.float32, 4), (torch.bfloat16, 4), (torch.float16, 4)]
)
def test_lower_precision_is_as_near_to_float64_as_the_reference(
    dtype: torch.dtype, factor: float, way: str
) -> None:
    mask = mask_of([50, 50, 31])
    packing = Packing.of(mask)
    assert packing is not None
    exact = {name: x.requires_grad_() for name, x in inputs_of(131, 16, dtype).items()}
    table = relative_buckets(50, buckets=16, max_position=64)
    answers = []
    for kind in ("exact", "reference", "fast"):
        working = torch.float64 if kind == "exact" else dtype
        leaves: dict[str, Any] = {
            name: x.detach().to(working).requires_grad_() for name, x in exact.items()
        }
        if kind == "fast":
            out = attend(way, leaves, packing, positions_of(50, 16, 64, 16))
        else:
            out = reference(leaves, mask, table)
        out.double().square().sum().backward()
        answers.append([out.double(), *(x.grad.double() for x in leaves.values())])
    for true, ours, fast in zip(*answers, strict=True):
        error = (ours - true).norm()
        assert (fast - true).norm() <= factor * error + 1e-6 * true.norm()


def test_what_cannot_be_packed_says_so() -> None:
    assert Packing.of(torch.tensor([[0, 1, 1], [1, 1, 1]])) is None
    assert Packing.of(torch.tensor([[1, 1, 1], [0, 0, 0]])) is None


@pytest.mark.parametrize("lengths", [[4, 4], [5, 1, 3], [2, 9, 2], [12, 12, 12, 12]])
@pytest.mark.parametrize("recurring", [False, True])
def test_packing_and_padding_are_inverse_and_every_token_has_one_place(
    lengths: list[int], recurring: bool
) -> None:
    mask = mask_of(lengths, 12)
    packing = Packing.of(mask, recurring=recurring)
    assert packing is not None
    padded = torch.randn(len(lengths), 12, 2) * mask[..., None]
    assert packing.pad(packing.pack(padded)).equal(padded)
    packed = packing.pack(padded)[: sum(lengths)]
    again = torch.full_like(packed, math.nan)
    for group in packing.groups:
        group.scatter(group.gather(packed), again)
    assert again.equal(packed)


def test_recurring_sizes_are_few_and_hardly_larger() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, spans = set(), set()
    for _ in range(300):
        lengths = torch.randint(8, 60, (32,), generator=generator).tolist()
        packing = Packing.of(mask_of(lengths), recurring=True)
        assert packing is not None
        assert sum(lengths) <= len(packing.rows) <= sum(lengths) * 17 / 16
        assert sum(group.tokens for group in packing.groups) == sum(lengths)
        sizes.add(len(packing.rows))
        spans |= {group.length for group in packing.groups}
    # Without it there would be some two hundred numbers of rows and fifty lengths.
    assert len(sizes) <= 20
    assert spans <= set(range(8, 65, 8))

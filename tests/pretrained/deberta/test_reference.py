"""The reference scores are the paper's equation, term by term."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adalora.pretrained.deberta.reference import disentangled_scores, relative_buckets

SPAN = 4


def parts(length: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "query": torch.randn(2, 3, length, 5, dtype=dtype),
        "key": torch.randn(2, 3, length, 5, dtype=dtype),
        "position_key": torch.randn(3, 2 * SPAN, 5, dtype=dtype),
        "position_query": torch.randn(3, 2 * SPAN, 5, dtype=dtype),
    }


def by_the_paper(given: dict[str, Tensor], buckets: Tensor, terms: int) -> Tensor:
    """DeBERTa eq. 4 (third term by δ(i, j)), pair by pair; tables start at distance -SPAN."""
    query, key = given["query"], given["key"]
    batch, heads, length, size = query.shape
    scores = torch.zeros(batch, heads, length, length, dtype=query.dtype)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                for j in range(length):
                    total = query[b, h, i] @ key[b, h, j]
                    row = min(max(int(buckets[i, j]) + SPAN, 0), 2 * SPAN - 1)
                    if "position_key" in given:
                        total = total + query[b, h, i] @ given["position_key"][h, row]
                    if "position_query" in given:
                        total = total + key[b, h, j] @ given["position_query"][h, row]
                    scores[b, h, i, j] = total / math.sqrt(size * terms)
    return scores


@pytest.mark.parametrize("left_out", [(), ("position_key",), ("position_query",)])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_scores_are_the_sum_of_the_papers_terms(length: int, left_out: tuple[str, ...]) -> None:
    given = {name: value for name, value in parts(length).items() if name not in left_out}
    buckets = relative_buckets(length, buckets=SPAN, max_position=16)
    terms = 3 - len(left_out)
    torch.testing.assert_close(
        disentangled_scores(**given, buckets=buckets, terms=terms),
        by_the_paper(given, buckets, terms),
        rtol=0,
        atol=1e-13,
    )


def test_an_examples_scores_do_not_depend_on_its_batch() -> None:
    given = parts(6)
    buckets = relative_buckets(6, buckets=SPAN, max_position=16)
    both = disentangled_scores(**given, buckets=buckets, terms=3)
    given["query"], given["key"] = given["query"][1:], given["key"][1:]
    alone = disentangled_scores(**given, buckets=buckets, terms=3)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    given = parts(6, dtype)
    buckets = relative_buckets(6, buckets=SPAN, max_position=16)
    got = disentangled_scores(**given, buckets=buckets, terms=3)
    wide = {name: value.double() for name, value in given.items()}
    assert got.dtype == torch.float32
    # Six roundings to half precision: scaling and product of each of the three terms.
    bound = 6 * torch.finfo(dtype).eps * 4
    exact = disentangled_scores(**wide, buckets=buckets, terms=3)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=bound)


def test_a_product_beyond_float16_gives_a_score_within_it() -> None:
    query = torch.full((1, 1, 1, 8), 100.0, dtype=torch.float16)
    scores = disentangled_scores(query, query, torch.zeros(1, 1, dtype=torch.long), terms=3)
    assert (query.double() @ query.double().mT).item() > torch.finfo(torch.float16).max
    torch.testing.assert_close(scores.item(), 80_000 / math.sqrt(24), rtol=2e-3, atol=0)

"""A mask that knows its packing stays a mask to everybody else, and takes the packing along."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from tests.accelerators.steps import Case, batch, build
from torch import Tensor

from adalora.pretrained.deberta import encoder
from adalora.pretrained.deberta.packing import PackedMask, Packing

LENGTHS = [(7, 7, 7), (9, 2, 5, 1), (64, 3), (1,)]


def _mask(lengths: tuple[int, ...]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def _same(one: Packing, other: Packing) -> bool:
    def equal(a: Any, b: Any) -> bool:
        return (a is None and b is None) or (a.device == b.device and torch.equal(a, b))

    plain = ("batch", "length", "filling", "longest", "recurring")
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and equal(one.rows, other.rows)
        and all(
            (a.count, a.length, a.start) == (b.count, b.length, b.start)
            and all(equal(getattr(a, n), getattr(b, n)) for n in ("rows", "real", "absent"))
            for a, b in zip(one.groups, other.groups, strict=True)
        )
    )


@pytest.mark.parametrize("recurring", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_its_packing_is_that_of_the_mask(lengths: tuple[int, ...], recurring: bool) -> None:
    mask = _mask(lengths)
    packed, expected = (
        PackedMask.of(mask, recurring=recurring),
        Packing.of(mask, recurring=recurring),
    )
    assert packed.packing is not None
    assert expected is not None
    assert _same(packed.packing, expected)
    assert torch.equal(packed.as_subclass(Tensor), mask)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_it_survives_moving_and_the_way_from_a_worker(lengths: tuple[int, ...]) -> None:
    packed = PackedMask.of(_mask(lengths))
    for other in (packed.to("cpu"), packed.to(torch.int32), pickle.loads(pickle.dumps(packed))):
        assert isinstance(other, PackedMask)
        assert packed.packing is not None
        assert other.packing is not None
        assert _same(other.packing, packed.packing)


def test_its_index_goes_to_another_device_in_one_piece() -> None:
    packed = PackedMask.of(_mask((9, 2, 5, 1))).to("meta")
    assert packed.packing is not None
    assert packed.tables is not None
    storages = {
        part.untyped_storage()._cdata
        for part in packed.packing._parts()
        if part is not None and part.device.type == "meta"
    }
    assert len(storages) == 1
    assert packed.packing.rows.device.type == "meta"


def test_what_is_computed_from_it_is_a_plain_tensor() -> None:
    packed = PackedMask.of(_mask((3, 2)))
    for other in (packed[:1], packed * 2, packed.bool(), packed.sum(dim=1), packed.clone()):
        assert not isinstance(other, PackedMask)


@pytest.mark.parametrize("mask", [[[0, 1, 1], [1, 1, 1]], [[1, 1], [0, 0]]], ids=str)
def test_a_mask_that_cannot_be_packed_says_so(mask: list[list[int]]) -> None:
    packed = PackedMask.of(torch.tensor(mask))
    assert packed.packing is None
    assert packed.to("meta").packing is None


def test_it_can_be_saved_as_a_mask() -> None:
    file = io.BytesIO()
    torch.save(PackedMask.of(_mask((3, 2))).as_subclass(Tensor), file)
    file.seek(0)
    assert torch.equal(torch.load(file), _mask((3, 2)))


def test_a_model_answers_it_as_it_answers_the_mask() -> None:
    case = Case("svd", low=None)
    model, _ = build(case)
    inputs = batch()
    plain = model(**inputs).logits
    packed = model(**{**inputs, "attention_mask": PackedMask.of(inputs["attention_mask"])}).logits
    assert torch.equal(plain, packed)


@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=str)
def test_an_accelerators_attention_makes_the_same_step(
    low: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole model, on real numbers: all sequences at once in place of groups."""
    case = Case("svd", low=low)
    inputs = batch()
    answers = []
    for at_once in (False, True):
        monkeypatch.setattr(encoder, "_attends_at_once", lambda _, at_once=at_once: at_once)
        model, _ = build(case)
        with torch.autocast("cpu", dtype=low or torch.bfloat16, enabled=low is not None):
            output = model(**inputs)
        output.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        answers.append([output.logits.float(), *gradients])
    tolerance = 1e-5 if low is None else 3e-2
    for grouped, whole in zip(*answers, strict=True):
        torch.testing.assert_close(
            whole, grouped, rtol=0, atol=tolerance * grouped.abs().max().item()
        )

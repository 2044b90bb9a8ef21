"""Dropout with fewer random numbers: the law of its masks, and every model trains with it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adalora.pretrained.dropout import FastDropout, keep_mask, use_fast_dropout


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.5, 0.99])
def test_the_mask_keeps_its_share(chance: float) -> None:
    torch.manual_seed(0)
    count = 1_000_003
    share = keep_mask(torch.empty(count), chance).double().mean().item()
    assert share == pytest.approx(1 - chance, abs=5 * math.sqrt(0.25 / count) + 2**-16)
    first, second = keep_mask(torch.empty(2, 500_000), 0.5).double()
    # Neighbours and rows are independent.
    for one, other in ((first, second), (first[1:], first[:-1]), (first[4:], first[:-4])):
        correlation = ((one - 0.5) * (other - 0.5)).mean().item() * 4
        assert abs(correlation) < 5 / math.sqrt(len(one))


def test_the_dropout_module_drops_rescales_and_sends_back_the_same_mask() -> None:
    torch.manual_seed(0)
    module = FastDropout(0.2)
    x = torch.ones(1000, 33, dtype=torch.float64, requires_grad=True)
    out = module(x)
    assert set(out.unique().tolist()) == {0.0, 1.25}
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.equal(out)
    assert module.eval()(x) is x
    assert FastDropout(0.0)(x).equal(x)


def test_every_dropout_of_a_model_is_replaced_and_the_rest_stays() -> None:
    class Own(nn.Dropout):
        pass

    model = nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.3), nn.ModuleDict({"a": nn.Dropout(0.2), "b": Own(0.1)})
    )
    model[1].eval()
    before = list(model.state_dict())
    use_fast_dropout(model)
    use_fast_dropout(model)
    assert [type(module) for module in model.modules()][2:] == [
        *(FastDropout, nn.ModuleDict, FastDropout, Own)
    ]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.2, 0.1]
    assert not model[1].training
    assert model[2].training
    assert list(model.state_dict()) == before

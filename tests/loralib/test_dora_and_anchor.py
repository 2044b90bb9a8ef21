"""DoRA against its formula, and updates that are measured from where they start."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loralib


def layer_of(
    kind: type[loralib.Linear] | type[loralib.SVDLinear], **settings: object
) -> loralib.Linear | loralib.SVDLinear:
    torch.manual_seed(0)
    base = nn.Linear(7, 5)
    return kind.from_linear(base, r=2, lora_alpha=3, **settings)  # type: ignore[arg-type]


def perturb(layer: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("lora_"):
                parameter.add_(0.3 * torch.randn_like(parameter))


def test_dora_computes_magnitude_times_direction() -> None:
    layer = layer_of(loralib.DoRALinear)
    perturb(layer)
    x = torch.randn(4, 7)
    direction = layer.weight + 1.5 * layer.lora_B @ layer.lora_A
    norm = direction.norm(dim=1, keepdim=True)
    weight = layer.get_parameter("lora_magnitude").unsqueeze(1) * direction / norm
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))
    torch.testing.assert_close(layer.delta_weight(), weight - layer.weight)


def test_the_norm_is_a_constant_to_doras_gradient() -> None:
    layer = layer_of(loralib.DoRALinear).double()
    perturb(layer)
    x = torch.randn(4, 7, dtype=torch.float64)
    layer(x).square().sum().backward()
    a, b, m = (
        layer.get_parameter(name).detach().requires_grad_()
        for name in ("lora_A", "lora_B", "lora_magnitude")
    )
    direction = layer.weight.detach() + 1.5 * b @ a
    norm = direction.norm(dim=1, keepdim=True).detach()
    F.linear(x, m.unsqueeze(1) * direction / norm, layer.bias).square().sum().backward()
    for name, expected in (("lora_A", a), ("lora_B", b), ("lora_magnitude", m)):
        torch.testing.assert_close(layer.get_parameter(name).grad, expected.grad)


def test_dora_keeps_the_magnitudes_where_the_direction_alone_is_moved() -> None:
    layer = layer_of(loralib.DoRALinear)
    norms = layer.weight.norm(dim=1)
    torch.testing.assert_close(layer.get_parameter("lora_magnitude"), norms)
    with torch.no_grad():
        layer.lora_B.normal_()
    merged = layer.weight + layer.delta_weight()
    torch.testing.assert_close(merged.norm(dim=1), norms)


def test_a_row_of_zeros_has_no_direction_and_stays_zero() -> None:
    base = nn.Linear(7, 5)
    with torch.no_grad():
        base.weight[1] = 0
    layer = loralib.DoRALinear.from_linear(base, r=2, lora_alpha=3)
    assert layer(torch.randn(4, 7)).isfinite().all()
    assert not layer.delta_weight()[1].any()


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear, loralib.DoRALinear])
def test_merging_gives_the_same_outputs_and_unmerging_the_same_base(
    kind: type[loralib.Linear],
) -> None:
    layer = layer_of(kind)
    perturb(layer)
    layer.anchor()
    perturb(layer)
    x, base = torch.randn(4, 7), layer.weight.detach().clone()
    before, delta = layer(x), layer.delta_weight()
    layer.merge()
    torch.testing.assert_close(layer(x), before)
    torch.testing.assert_close(layer.delta_weight(), delta)
    layer.unmerge()
    assert torch.equal(layer.weight, base)


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_anchored_update_is_zero_then_and_the_difference_later(
    kind: type[loralib.Linear], dropout: float
) -> None:
    layer = layer_of(kind, lora_dropout=dropout)
    perturb(layer)
    start = layer.delta_weight()
    assert not layer.is_anchored
    layer.anchor()
    assert layer.is_anchored
    x = torch.randn(4, 7)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
    perturb(layer)
    down, up = layer._product()
    torch.testing.assert_close(layer.delta_weight(), up @ down - start)


def test_an_anchor_is_saved_moved_and_given_up() -> None:
    layer = layer_of(loralib.Linear)
    perturb(layer)
    layer.anchor()
    state = layer.state_dict()
    assert {"lora_anchor_A", "lora_anchor_B"} <= set(state)
    again = pickle.loads(pickle.dumps(layer))
    torch.testing.assert_close(again.delta_weight(), layer.delta_weight())
    assert layer.double().delta_weight().dtype == torch.float64
    layer.reset_lora_parameters()
    assert not layer.is_anchored
    assert not layer.delta_weight().any()
    empty = loralib.Linear(7, 5, r=0)
    with pytest.raises(ValueError, match="has no adapter"):
        empty.anchor()


def test_dora_refuses_a_weight_the_other_way_round_and_computes_in_half_precision() -> None:
    with pytest.raises(ValueError, match="fan_in_fan_out"):
        loralib.DoRALinear(7, 5, r=2, fan_in_fan_out=True)
    torch.manual_seed(0)
    base = nn.Linear(7, 5)
    plain = loralib.DoRALinear.from_linear(base, r=2, lora_alpha=3)
    half = loralib.DoRALinear.from_linear(nn.Linear(7, 5).to(torch.bfloat16), r=2, lora_alpha=3)
    assert half.lora_magnitude.dtype == torch.float32
    x = torch.randn(4, 7)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = plain(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), base(x), rtol=2e-2, atol=2e-2)

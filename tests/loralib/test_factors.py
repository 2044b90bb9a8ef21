"""What a layer says about its adapter is what it computes: factors, scale, triplets, storing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import loralib
from loralib.base import LinearAdapter

KINDS = [loralib.Linear, loralib.SVDLinear, loralib.DoRALinear]
RANK, ALPHA = 3, 5.0

each_kind = pytest.mark.parametrize("kind", KINDS)


def layer_of(kind: type[LinearAdapter], rank: int = RANK, alpha: float = ALPHA) -> LinearAdapter:
    torch.manual_seed(0)
    return kind.from_linear(nn.Linear(7, 6).double(), r=rank, lora_alpha=alpha)


@torch.no_grad()
def perturb(layer: LinearAdapter) -> LinearAdapter:
    for factor in layer.factors().values():
        factor.add_(torch.randn_like(factor))
    return layer


def product(layer: LinearAdapter) -> Tensor:
    """The scaled product, from the factors and the scale that the layer states."""
    factors = layer.factors()
    values = factors["lora_E"] if "lora_E" in factors else torch.ones(layer.r, 1).double()
    return layer.scale * factors["lora_B"] @ (values * factors["lora_A"])


@each_kind
@pytest.mark.parametrize("alpha", [ALPHA, 0.5])
def test_the_scale_it_states_is_the_scale_it_computes_with(
    kind: type[LinearAdapter], alpha: float
) -> None:
    layer = perturb(layer_of(kind, alpha=alpha))
    down, up = layer._product()
    torch.testing.assert_close(up @ down, product(layer))
    assert layer.scale == pytest.approx(kind.scale_for(alpha, RANK))
    assert kind.scale_for(kind.alpha_for(0.7, RANK), RANK) == pytest.approx(0.7)
    assert layer.initial_rank == RANK


def test_an_alpha_of_zero_is_the_rank_with_singular_values_and_no_update_without() -> None:
    svd, plain = perturb(layer_of(loralib.SVDLinear, alpha=0)), layer_of(loralib.Linear, alpha=0)
    assert svd.scale == loralib.SVDLinear.scale_for(0, RANK) == pytest.approx(1, abs=1e-5)
    assert plain.scale == 0
    assert plain.initial_rank == RANK


@each_kind
def test_its_factors_are_its_trained_parameters_and_triplets_share_them_out(
    kind: type[LinearAdapter],
) -> None:
    layer = layer_of(kind)
    trained = {n for n, p in layer.named_parameters() if p.requires_grad and n != "bias"}
    assert set(layer.factors()) == trained
    shared = [layer.factors()[n] for n, dim in kind.FACTORS.items() if dim is not None]
    assert layer.triplet_size * RANK == sum(factor.numel() for factor in shared)
    assert kind.from_linear(nn.Linear(7, 6), r=0, lora_alpha=1).factors() == {}


@each_kind
def test_where_the_zero_factor_is_zero_so_is_the_product(kind: type[LinearAdapter]) -> None:
    assert not layer_of(kind).factors()[kind.ZERO_FACTOR].any()
    layer = perturb(layer_of(kind))
    assert product(layer).any()
    layer.factors()[kind.ZERO_FACTOR].data.zero_()
    assert not product(layer).any()


@each_kind
@pytest.mark.parametrize("alpha", [ALPHA, 0.0])
def test_what_it_stores_of_the_triplets_kept_computes_the_same(
    kind: type[LinearAdapter], alpha: float
) -> None:
    layer = perturb(layer_of(kind, alpha=alpha))
    with torch.no_grad():
        layer.factors()[kind.ZERO_FACTOR].select(kind.FACTORS[kind.ZERO_FACTOR] or 0, 1).zero_()
    assert [bool(value) for value in layer.triplet_values()] == [True, False, True]
    stored = layer.stored_factors(torch.tensor([0, 2]))
    again = layer_of(kind, rank=2, alpha=alpha)
    again.set_initial_rank(RANK)
    for name, tensor in stored.items():
        again.factors()[name].data.copy_(tensor)
    torch.testing.assert_close(again.delta_weight(), layer.delta_weight())
    assert again.scale == layer.scale
    assert again.initial_rank == (RANK if layer.scale else 2)


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear])
def test_what_an_anchored_layer_stores_needs_no_anchor(kind: type[LinearAdapter]) -> None:
    layer = perturb(layer_of(kind))
    layer.anchor()
    perturb(layer)
    again = layer_of(kind, rank=layer.stored_rank, alpha=layer.stored_alpha)
    for name, tensor in layer.stored_factors().items():
        again.factors()[name].data.copy_(tensor)
    assert layer.stored_rank == 2 * RANK
    torch.testing.assert_close(again.delta_weight(), layer.delta_weight())


@each_kind
def test_a_product_that_is_set_is_the_product(kind: type[LinearAdapter]) -> None:
    layer = layer_of(kind)
    up, values, down = torch.randn(6, RANK), torch.rand(RANK) + 0.1, torch.randn(RANK, 7)
    layer.set_product(up.double(), values.double(), down.double())
    expected = layer.scale * (up * values @ down).double()
    torch.testing.assert_close(product(layer), expected, rtol=1e-5, atol=1e-5)


def test_a_merged_linear_is_put_on_a_layer_that_exists() -> None:
    base = nn.Linear(4, 6)
    layer = loralib.MergedLinear.from_linear(
        base, r=2, lora_alpha=2, enable_lora=[True, False, True]
    )
    assert layer.weight is base.weight
    nn.init.ones_(layer.lora_B)
    assert layer.delta_weight().any(dim=1).tolist() == [True, True, False, False, True, True]
    untouched = loralib.MergedLinear.from_linear(base, r=2, lora_alpha=2)
    assert not untouched.has_adapter

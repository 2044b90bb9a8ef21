"""Every adapted layer: what it computes, merging and its inverse, gradients, names, dtypes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import loralib

LAYERS: dict[str, Callable[..., Any]] = {
    "Linear": lambda **k: loralib.Linear(6, 8, r=2, lora_alpha=6, **k),
    "Linear, transposed": lambda **k: loralib.Linear(
        6, 8, r=2, lora_alpha=6, fan_in_fan_out=True, **k
    ),
    "SVDLinear": lambda **k: loralib.SVDLinear(6, 8, r=3, lora_alpha=6, **k),
    "SVDLinear, transposed": lambda **k: loralib.SVDLinear(
        6, 8, r=3, lora_alpha=6, fan_in_fan_out=True, **k
    ),
    "MergedLinear": lambda **k: loralib.MergedLinear(
        6, 12, r=2, lora_alpha=6, enable_lora=[True, False, True], **k
    ),
    "MergedLinear, transposed": lambda **k: loralib.MergedLinear(
        6, 12, r=2, lora_alpha=6, enable_lora=[True, False, True], fan_in_fan_out=True, **k
    ),
    "Embedding": lambda **k: loralib.Embedding(6, 8, r=2, lora_alpha=6, **k),
    "Conv2d": lambda **k: loralib.Conv2d(3, 4, 3, r=2, lora_alpha=6, padding=1, **k),
    "Conv2d, grouped": lambda **k: loralib.Conv2d(4, 6, 3, r=2, lora_alpha=6, groups=2, **k),
}


def layer(name: str, **settings: Any) -> Any:
    """The named layer in float64, with an update that is not zero."""
    torch.manual_seed(0)
    made = LAYERS[name](**settings).double()
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if "lora_" in key:
                parameter.normal_(std=0.5)
    return made


def batch(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name == "Embedding":
        return torch.randint(0, 6, (5, 4), generator=generator)
    if name.startswith("Conv2d"):
        channels = 4 if "grouped" in name else 3
        return torch.randn(2, channels, 5, 5, generator=generator, dtype=torch.float64)
    return torch.randn(5, 4, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", list(LAYERS))
def test_merging_changes_nothing_that_is_computed_and_unmerging_restores_every_bit(
    name: str,
) -> None:
    parent = nn.Sequential(layer(name, merge_weights=True))
    x, base = batch(name), parent[0].weight.detach().clone()
    parent.train()
    expected = parent(x)
    for _ in range(50):
        assert parent.eval() is parent
        assert parent[0].merged
        torch.testing.assert_close(parent(x), expected, rtol=1e-12, atol=1e-12)
        parent.train()
        assert not parent[0].merged
    assert torch.equal(parent[0].weight, base)
    assert torch.equal(parent(x), expected)


@pytest.mark.parametrize("name", list(LAYERS))
def test_merging_twice_is_merging_once_and_adds_the_update(name: str) -> None:
    made = layer(name, merge_weights=False)
    base = made.weight.detach().clone()
    made.eval()
    assert not made.merged
    made.merge()
    once = made.weight.detach().clone()
    made.merge()
    assert torch.equal(made.weight, once)
    delta = made._stored_delta()
    torch.testing.assert_close(once, base + delta, rtol=0, atol=1e-12)
    assert delta.abs().max() > 0.01


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_state_dict_holds_the_base_merged_or_not(name: str) -> None:
    made = layer(name, merge_weights=True)
    plain = {key: value.clone() for key, value in made.state_dict().items()}
    made.eval()
    merged = made.state_dict()
    assert all(torch.equal(merged[key], plain[key]) for key in plain)
    fresh = layer(name, merge_weights=True)
    fresh.eval()
    fresh.load_state_dict(merged)
    x = batch(name)
    torch.testing.assert_close(fresh(x), made(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(LAYERS))
def test_only_the_adapter_and_the_bias_get_gradients(name: str) -> None:
    made = layer(name)
    made(batch(name)).square().sum().backward()
    assert made.weight.grad is None
    for key, parameter in made.named_parameters():
        if "lora_" in key:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0


def as_replica(made: nn.Module) -> Any:
    """As ``nn.DataParallel`` copies a module to another device: its parameters are attributes."""
    replica = made._replicate_for_data_parallel()
    for key, parameter in made._parameters.items():
        setattr(replica, key, None if parameter is None else parameter.clone())
    return replica


def as_flattened(made: nn.Module) -> Any:
    """As FSDP without original parameters holds a module: views of one flat parameter."""
    for key, parameter in list(made._parameters.items()):
        delattr(made, key)
        setattr(made, key, None if parameter is None else parameter.detach().view_as(parameter))
    return made


def as_parametrized(made: nn.Module) -> Any:
    """Under ``torch.nn.utils.parametrize`` a factor is computed at every access."""
    for key in [key for key in made._parameters if key.startswith("lora_")]:
        parametrize.register_parametrization(made, key, nn.Identity())
    return made


@pytest.mark.parametrize("held", [as_replica, as_flattened, as_parametrized])
@pytest.mark.parametrize("name", list(LAYERS))
def test_an_adapter_counts_wherever_its_parameters_are_held(
    name: str, held: Callable[[nn.Module], Any]
) -> None:
    made, x = layer(name, merge_weights=False), batch(name)
    expected = made(x)
    assert torch.equal(held(made)(x), expected)


@pytest.mark.parametrize("held", [as_replica, as_flattened, as_parametrized])
def test_factors_that_are_held_elsewhere_are_not_taken_for_none(
    held: Callable[[nn.Module], Any],
) -> None:
    made = held(layer("SVDLinear"))
    with pytest.raises(ValueError, match="lora_A is no parameter of its "):
        made.factors()
    with pytest.raises(ValueError, match="lora_A is no parameter of its "):
        loralib.RankAllocator(nn.Sequential(made), 3, 1, 1, 1, 1, 0.5, 0.5)


@pytest.mark.parametrize("name", list(LAYERS))
def test_layers_that_share_a_weight_each_merge_their_own_update(name: str) -> None:
    one, two = layer(name, merge_weights=True), layer(name, merge_weights=True)
    plain = nn.Module()
    two.weight = plain.weight = one.weight
    with torch.no_grad():
        two.lora_B.neg_()
    both, x = nn.Sequential(one, two), batch(name)
    base, expected = one.weight.detach().clone(), (one(x), two(x))
    for _ in range(2):
        both.eval()
        for made, value in zip(both, expected, strict=True):
            torch.testing.assert_close(made(x), value, rtol=1e-12, atol=1e-12)
        assert torch.equal(plain.weight, base)
        both.train()
        assert one.weight is two.weight is plain.weight
        assert torch.equal(one.weight, base)
        assert (torch.equal(one(x), expected[0]), torch.equal(two(x), expected[1])) == (True, True)


@pytest.mark.parametrize("name", list(LAYERS))
def test_gradients_are_the_derivatives(name: str) -> None:
    made, x = layer(name), batch(name)
    names = [key for key, _ in made.named_parameters() if "lora_" in key]
    values = [made.get_parameter(key).detach().clone().requires_grad_() for key in names]

    def compute(*parameters: Tensor) -> Tensor:
        replaced = dict(zip(names, parameters, strict=True))
        result = torch.func.functional_call(made, replaced, (x,))
        assert isinstance(result, Tensor)
        return result

    assert torch.autograd.gradcheck(compute, tuple(values))


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_layer_can_be_copied_pickled_and_moved_between_precisions(name: str) -> None:
    made, x = layer(name, merge_weights=True).train(), batch(name)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(twin(x), made(x))
    made.eval()
    merged = made(x)
    made.float().double()
    torch.testing.assert_close(made.train()(x), merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["Linear", "SVDLinear", "MergedLinear", "Embedding", "Conv2d"])
def test_a_fresh_layer_computes_what_its_base_does(name: str) -> None:
    torch.manual_seed(0)
    made, x = LAYERS[name]().double(), batch(name)
    if name == "Embedding":
        expected = F.embedding(x, made.weight)
    elif name == "Conv2d":
        expected = F.conv2d(x, made.weight, made.bias, padding=1)
    else:
        expected = F.linear(x, made.weight, made.bias)
    assert torch.equal(made(x), expected)


@pytest.mark.parametrize(
    ("made", "shapes"),
    [
        (loralib.SVDLinear(5, 7, r=3), {"lora_A": (3, 5), "lora_E": (3, 1), "lora_B": (7, 3)}),
        (loralib.Linear(5, 7, r=3), {"lora_A": (3, 5), "lora_B": (7, 3)}),
        (loralib.Embedding(5, 7, r=3), {"lora_A": (3, 5), "lora_B": (7, 3)}),
        (loralib.Conv2d(2, 4, 3, r=2), {"lora_A": (6, 6), "lora_B": (12, 6)}),
        (
            loralib.MergedLinear(5, 9, r=2, enable_lora=[True, False, True]),
            {"lora_A": (4, 5), "lora_B": (6, 2)},
        ),
    ],
)
def test_parameters_have_the_originals_names_and_shapes(
    made: nn.Module, shapes: dict[str, tuple[int, ...]]
) -> None:
    found = {k: tuple(p.shape) for k, p in made.named_parameters() if "lora_" in k}
    assert found == shapes


def test_the_svd_layer_is_its_formula_with_the_initial_rank_in_the_scale() -> None:
    made = layer("SVDLinear")
    x = batch("SVDLinear")
    assert made.ranknum.item() == 3
    assert not made.ranknum.requires_grad
    update = made.lora_B @ torch.diag(made.lora_E.flatten()) @ made.lora_A
    expected = x @ made.weight.T + made.bias + 6 / (3 + 1e-5) * (x @ update.T)
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        made.lora_E[1:] = 0
    assert made.ranknum.item() == 3


def test_the_svd_layer_starts_as_the_paper_says() -> None:
    torch.manual_seed(0)
    made = loralib.SVDLinear(400, 300, r=8)
    assert (made.lora_E == 0).all()
    for factor in (made.lora_A, made.lora_B):
        assert factor.std().item() == pytest.approx(0.02, rel=0.05)
    assert loralib.SVDLinear(4, 4, r=2, lora_alpha=0).scaling == 2


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear])
def test_from_linear_shares_the_base_and_keeps_its_answers(kind: Any) -> None:
    base = nn.Linear(5, 7).eval()
    made = kind.from_linear(base, r=2, lora_alpha=4)
    assert made.weight is base.weight
    assert made.bias is base.bias
    assert not made.training
    assert not made.weight.requires_grad
    x = torch.randn(3, 5)
    assert torch.equal(made(x), base(x))


class Doubled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def with_own_forward() -> nn.Linear:
    base = nn.Linear(5, 5)
    base.forward = lambda x: 2 * F.linear(x, base.weight, base.bias)  # type: ignore[method-assign]
    return base


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear, loralib.DoRALinear])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Doubled(5, 5), "Doubled"),
        (lambda: nn.MultiheadAttention(5, 1).out_proj, "NonDynamicallyQuantizableLinear"),
        (lambda: loralib.Linear(5, 5, r=1), "Linear"),
        (with_own_forward, "forward of its own"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)), "Parametrized"),
    ],
)
def test_from_linear_refuses_what_it_would_lose(
    kind: Any, make: Callable[[], nn.Linear], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        kind.from_linear(make(), r=2, lora_alpha=4)


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear, loralib.DoRALinear])
def test_from_linear_keeps_the_hooks_and_their_handles(kind: Any) -> None:
    base, seen = nn.Linear(5, 7), []
    handles = [
        base.register_forward_hook(lambda *_: seen.append("forward")),
        base.register_forward_pre_hook(lambda *_: seen.append("before")),
        base.register_forward_hook(lambda *_, **__: seen.append("words"), with_kwargs=True),
        base.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    made = kind.from_linear(base, r=2, lora_alpha=4)
    made(torch.randn(3, 5, requires_grad=True)).sum().backward()
    assert seen == ["before", "forward", "words", "backward"]
    for handle in handles:
        handle.remove()
    made(torch.randn(3, 5, requires_grad=True)).sum().backward()
    assert len(seen) == 4


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear])
def test_beside_a_half_precision_base_the_adapter_is_float32(kind: Any) -> None:
    base = nn.Linear(5, 7).to(torch.bfloat16)
    made = kind.from_linear(base, r=2, lora_alpha=4)
    assert made.lora_A.dtype == torch.float32
    x = torch.randn(3, 5).to(torch.bfloat16)
    out = made(x)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert made.lora_B.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.float()(torch.randn(3, 5)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.SVDLinear])
def test_dropout_acts_on_the_adapter_alone_and_in_training_only(kind: Any) -> None:
    torch.manual_seed(0)
    made = kind(6, 8, r=2, lora_dropout=0.999999, merge_weights=False)
    with torch.no_grad():
        for key, parameter in made.named_parameters():
            if "lora_" in key:
                parameter.normal_()
    x = torch.randn(4, 6)
    base = F.linear(x, made.weight, made.bias)
    torch.testing.assert_close(made(x), base)
    made.eval()
    assert (made(x) - base).abs().max() > 0.1


def test_rank_zero_is_an_ordinary_layer() -> None:
    for made in (loralib.Linear(4, 4), loralib.SVDLinear(4, 4), loralib.Embedding(4, 4)):
        assert not made.has_adapter
        assert made.weight.requires_grad
        with pytest.raises(ValueError, match="has no adapter"):
            made.delta_weight()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: loralib.Linear(4, 4, r=-1), ValueError, "got r=-1"),
        (lambda: loralib.Conv2d(2, 2, (3, 3), r=1), TypeError, "kernel_size must be one int"),  # type: ignore[arg-type]
        (
            lambda: loralib.MergedLinear(4, 7, r=1, enable_lora=[True, True]),
            ValueError,
            "2 parts for out_features=7",
        ),
        (lambda: loralib.Embedding(4, 4, r=1, max_norm=1.0), ValueError, "max_norm=1.0"),
    ],
)
def test_a_bad_argument_is_an_error_that_names_it(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()

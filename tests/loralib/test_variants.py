"""Other scores and plain LoRA's doublets: against slow versions, masked to zero, resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import loralib

FACTORS = ("lora_A", "lora_E", "lora_B")
VARIANTS: list[dict[str, str]] = [
    {"score": "sensitivity"},
    {"score": "magnitude"},
    {"lora_type": "frd"},
    {"lora_type": "frd", "score": "sensitivity"},
    {"lora_type": "frd", "score": "magnitude"},
    {"allocation": "grow"},
    {"allocation": "grow", "score": "sensitivity"},
    {"allocation": "grow", "score": "magnitude"},
]


class Plain(nn.Module):
    """tanh(plain LoRA layer) three times and a head; two layers share a shape."""

    def __init__(self, rank: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = [(6, 6), (6, 6), (6, 10)]
        self.layers = nn.ModuleList(
            loralib.Linear(a, b, r=rank, lora_alpha=8, merge_weights=False) for a, b in shapes
        )
        self.head = nn.Linear(10, 2)
        self.double()
        loralib.mark_only_lora_as_trainable(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def train(model: nn.Module, allocator: loralib.RankAllocator, steps: range) -> list[float]:
    """Plain gradient descent, which has no state of its own to resume; the losses."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3)
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator).to(trained[0].dtype)
        loss = nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
        loss.backward()
        optimizer.step()
        allocator.update_and_mask(model, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def model_of(variant: dict[str, str], make_stack: Callable[..., Any]) -> Any:
    return Plain() if variant.get("lora_type") == "frd" else make_stack()


def recorded(
    model: Any, allocator: loralib.RankAllocator, steps: int = 6
) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Drive the allocator with random weights and gradients, and note them."""
    generator = torch.Generator().manual_seed(3)
    history = []
    for step in range(steps):
        record = {}
        for name, p in model.named_parameters():
            if "lora_" in name:
                with torch.no_grad():
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                record[name] = (p.detach().clone(), p.grad.clone())
        history.append(record)
        allocator.update_and_mask(model, step)
    return history


def averages(
    history: list[dict[str, tuple[torch.Tensor, torch.Tensor]]], beta1: float, beta2: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Eq. 10-12 by hand."""
    sensitivity = {name: torch.zeros_like(weight) for name, (weight, _) in history[0].items()}
    uncertainty = {name: torch.zeros_like(weight) for name, (weight, _) in history[0].items()}
    for record in history:
        for name, (weight, gradient) in record.items():
            now = (weight * gradient).abs()
            sensitivity[name] = beta1 * sensitivity[name] + (1 - beta1) * now
            apart = (now - sensitivity[name]).abs()
            uncertainty[name] = beta2 * uncertainty[name] + (1 - beta2) * apart
    return sensitivity, uncertainty


@pytest.mark.parametrize(
    "variant", [{"score": "sensitivity"}, {"lora_type": "frd"}, VARIANTS[3]], ids=str
)
def test_scores_by_averages_equal_the_slow_form(
    variant: dict[str, str], make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = model_of(variant, make_stack)
    allocator = make_allocator(model, beta1=0.7, beta2=0.9, init_warmup=12, **variant)
    sensitivity, uncertainty = averages(recorded(model, allocator), 0.7, 0.9)
    expected = []
    for index, layer in enumerate(model.layers):
        entries = {
            factor: sensitivity[name]
            * (1 if variant.get("score") == "sensitivity" else uncertainty[name])
            for factor in FACTORS
            if (name := f"layers.{index}.{factor}") in sensitivity
        }
        for i in range(layer.r):
            vectors = entries["lora_A"][i].mean() + entries["lora_B"][:, i].mean()
            value = entries["lora_E"][i, 0] if "lora_E" in entries else 0.0
            expected.append(float(value + vectors))
    got = allocator.importance.scores()
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=1e-12, atol=0)


@pytest.mark.parametrize("lora_type", ["svd", "frd"])
def test_magnitude_is_that_of_the_singular_value(
    lora_type: str, make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = model_of({"lora_type": lora_type}, make_stack)
    allocator = make_allocator(model, init_warmup=12, lora_type=lora_type, score="magnitude")
    recorded(model, allocator, steps=2)
    expected = []
    for layer in model.layers:
        for i in range(layer.r):
            if lora_type == "svd":
                expected.append(layer.lora_E[i, 0].abs().item())
            else:
                product = torch.outer(layer.lora_B[:, i], layer.lora_A[i])
                expected.append(torch.linalg.matrix_norm(product, ord=2).item())
    got = allocator.importance.scores()
    torch.testing.assert_close(got, torch.tensor(expected, dtype=got.dtype), rtol=1e-12, atol=0)


def test_magnitude_passes_over_values_that_are_not_finite(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    allocator = make_allocator(model, score="magnitude")
    train(model, allocator, range(2))
    before = allocator.importance.scores()
    with torch.no_grad():
        model.layers[1].lora_E[0] = float("nan")
    allocator.update_and_mask(model, 2)
    assert torch.equal(allocator.importance.scores(), before)
    assert allocator.skipped_steps == 1


@pytest.mark.parametrize("score", loralib.SCORES)
def test_pruned_doublets_are_zero_and_the_budget_is_kept(
    score: str, make_allocator: Callable[..., Any]
) -> None:
    model = Plain()
    allocator = make_allocator(model, target_rank=1, lora_type="frd", score=score)
    losses = train(model, allocator, range(20))
    pattern = allocator.get_rank_pattern()
    assert sum(pattern.values()) == 3
    assert list(pattern) == [f"layers.{i}.lora_E" for i in range(3)]
    for layer, kept in zip(model.layers, allocator.survivors().values(), strict=True):
        assert torch.equal((layer.lora_A != 0).any(dim=1), kept)
        assert (layer.lora_B[:, ~kept] == 0).all()
        assert torch.linalg.matrix_rank(layer.delta_weight()) <= int(kept.sum())
    assert losses[-1] < losses[0]


def test_adamw_can_bring_a_doublet_back_and_the_final_phase_ends_it(
    make_allocator: Callable[..., Any],
) -> None:
    model = Plain()
    allocator = make_allocator(model, lora_type="frd", mask_interval=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    back = 0
    for step in range(20):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).double()
        nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        allocator.update_and_mask(model, step)
        optimizer.zero_grad()
        for layer, kept in zip(model.layers, allocator.survivors().values(), strict=True):
            back += int((layer.lora_A[~kept] != 0).any()) if step % 4 else 0
    assert back > 0
    alive = sum(int((layer.lora_A != 0).any(dim=1).sum()) for layer in model.layers)
    assert alive == 3


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("stop", [1, 7, 12, 17])
def test_resuming_a_variant_from_its_state_is_bit_equal(
    variant: dict[str, str],
    stop: int,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    settings = {"target_rank": 2, **variant}
    whole, first, second = (model_of(variant, make_stack) for _ in range(3))
    reference = make_allocator(whole, **settings)
    train(whole, reference, range(20))
    allocator = make_allocator(first, **settings)
    train(first, allocator, range(stop))
    second.load_state_dict(first.state_dict())
    resumed = make_allocator(second, **settings)
    resumed.load_state_dict(allocator.state_dict())
    train(second, resumed, range(stop, 20))
    for one, two in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    assert resumed.get_rank_pattern() == reference.get_rank_pattern()
    assert resumed.mask_events == reference.mask_events
    assert torch.equal(resumed.importance.scores(), reference.importance.scores())


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({}, {"score": "sensitivity"}, "score uncertainty there, sensitivity here"),
        ({"score": "magnitude"}, {}, "score magnitude there, uncertainty here"),
        ({}, {"allocation": "grow"}, "allocation prune there, grow here"),
        ({"score": "sensitivity"}, {"score": "magnitude"}, "sensitivity there, magnitude here"),
    ],
)
def test_the_state_of_another_variant_is_refused(
    there: dict[str, str],
    here: dict[str, str],
    message: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    model = make_stack()
    state = make_allocator(model, **there).state_dict()
    with pytest.raises(ValueError, match=message):
        make_allocator(model, **here).load_state_dict(state)


def test_a_state_of_before_the_variants_is_that_of_the_published_method(
    make_stack: Callable[..., Any], make_allocator: Callable[..., Any]
) -> None:
    model = make_stack()
    state = make_allocator(model).state_dict()
    for name in ("lora_type", "score", "allocation"):
        del state[name]
    make_allocator(model).load_state_dict(state)
    with pytest.raises(ValueError, match="score uncertainty there, magnitude here"):
        make_allocator(model, score="magnitude").load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": "salience"}, "score must be one of uncertainty, sensitivity, magnitude, got"),
        ({"allocation": "shrink"}, "allocation must be one of prune, grow, got 'shrink'"),
        ({"lora_type": "dora"}, "lora_type must be svd or frd, got 'dora'"),
        ({"lora_type": "frd"}, r"needs at least one loralib\.Linear with r > 0"),
        ({"lora_type": "frd", "allocation": "grow"}, "doublets of plain LoRA cannot grow"),
    ],
)
def test_an_unknown_variant_is_an_error_that_shows_it(
    change: dict[str, Any],
    message: str,
    make_stack: Callable[..., Any],
    make_allocator: Callable[..., Any],
) -> None:
    with pytest.raises(ValueError, match=message):
        make_allocator(make_stack(), **change)


class Counter(TorchDispatchMode):  # type: ignore[misc]
    operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.operations += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", [{}, *VARIANTS], ids=str)
def test_an_allocation_takes_as_many_operations_for_many_layers_as_for_few(
    variant: dict[str, str],
) -> None:
    kind = loralib.Linear if variant.get("lora_type") == "frd" else loralib.SVDLinear
    counts = []
    for depth in (3, 30):
        shapes = [(6, 6) if index % 2 else (6, 9) for index in range(depth)]
        model = nn.ModuleList(kind(a, b, r=2) for a, b in shapes)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        # Half the layers' room is left when the budget has grown by one step.
        target = {"target_total_rank": depth + 2} if "allocation" in variant else {}
        allocator = loralib.RankAllocator(
            model, 2, 1, 1, 2, 1, 0.85, 0.85, total_step=10, **target, **variant
        )
        with Counter() as counter:
            _, threshold = allocator.update_and_mask(model, 5)
        assert threshold is not None
        counts.append(counter.operations)
    assert counts[0] == counts[1] <= 150

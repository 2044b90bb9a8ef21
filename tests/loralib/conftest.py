"""Small models of SVD and of plain layers, and training steps over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import loralib


class Stack(nn.Module):
    """tanh(SVD layer) twice and a head; two layers share a shape."""

    def __init__(self, rank: int = 3, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        shapes = [(6, 6), (6, 6), (6, 10)]
        self.layers = nn.ModuleList(
            loralib.SVDLinear(a, b, r=rank, lora_alpha=8, merge_weights=False) for a, b in shapes
        )
        self.head = nn.Linear(10, 2)
        self.to(dtype)
        loralib.mark_only_lora_as_trainable(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


@pytest.fixture
def make_stack() -> Callable[..., Stack]:
    return Stack


@pytest.fixture
def make_allocator() -> Callable[..., loralib.RankAllocator]:
    def make(model: nn.Module, **changes: object) -> loralib.RankAllocator:
        values: dict[str, object] = {
            "lora_r": 3,
            "target_rank": 1,
            "init_warmup": 2,
            "final_warmup": 4,
            "mask_interval": 2,
            "beta1": 0.85,
            "beta2": 0.85,
            "total_step": 20,
        }
        return loralib.RankAllocator(model, **{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture
def run() -> Callable[..., list[tuple[int, torch.Tensor | None]]]:
    def train(
        model: nn.Module, allocator: loralib.RankAllocator, steps: range
    ) -> list[tuple[int, torch.Tensor | None]]:
        results = []
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        dtype = next(model.parameters()).dtype
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(8, 6, generator=generator).to(dtype)
            y = (x[:, 0] > 0).long()
            loss = nn.functional.cross_entropy(model(x), y)
            (loss + loralib.compute_orth_regu(model)).backward()
            optimizer.step()
            results.append(allocator.update_and_mask(model, step))
            optimizer.zero_grad()
        return results

    return train


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

"""The layers whose rank is allocated, and what it means to mask one of their rank-one parts.

``svd``: a triplet of an SVDLinear (column of P, singular value, row of Q) is masked by its singular
value alone, so that it can come back. ``frd``: a doublet of a plain LoRA layer (column of B, row of
A) has nothing else to mask and is zeroed whole: "prune LoRA" of AdaLoRA's table 4. Only the
optimizer's momentum can bring it back, which is the weakness that the paper's §3.1 names.

A matrix's rank goes by the name ``<module>.lora_E`` in both forms: plain LoRA is the case in which
every singular value is 1. ``Stacks`` takes matrices of one shape together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from .base import LinearAdapter
from .layers import Linear
from .svd import SVDLinear

RankedLayer = SVDLinear | Linear
FORMS = ("svd", "frd")

# What the singular value of a triplet in reserve is while ranks grow: it moves no output, and
# lets the task's gradient reach the triplet's vectors (IncreLoRA's "advance learning").
_RESERVED = 1e-5


def ranked_layers(model: nn.Module, lora_type: str) -> Mapping[str, RankedLayer]:
    """The layers of one form that carry an adapter, by module path, in the model's order.

    Raises:
        ValueError: if there is none, or ``lora_type`` is neither ``svd`` nor ``frd``.
    """
    if lora_type not in FORMS:
        raise ValueError(f"lora_type must be svd or frd, got {lora_type!r}")
    if lora_type == "svd":
        return require_svd_layers(model, "RankAllocator")
    layers = adapted_layers(model, Linear)
    if not layers:
        raise ValueError(
            "RankAllocator with lora_type 'frd' needs at least one loralib.Linear with r > 0, and "
            f"this {type(model).__name__} has none"
        )
    return layers


def factors_of(layers: Mapping[str, RankedLayer]) -> tuple[str, ...]:
    """Names of the parameters that share a triplet (or doublet) between them."""
    first = next(iter(layers.values()))
    return tuple(name for name in ("lora_A", "lora_E", "lora_B") if name in first.FACTORS)


@torch.no_grad()
def mask(
    layers: Mapping[str, RankedLayer], survivors: Tensor, reserved: Tensor | None = None
) -> None:
    """Mask all triplets but the survivors, in place; as many operations for many layers as for few.

    Args:
        layers: from ``ranked_layers``.
        survivors: bool [triplets], layer after layer.
        reserved: bool [triplets], those that keep a singular value too small to move an output.
    """
    ranks = [layer.r for layer in layers.values()]
    if "lora_E" not in factors_of(layers):
        rows = list(survivors.unsqueeze(1).split(ranks))
        columns = list(survivors.unsqueeze(0).split(ranks, dim=1))
        torch._foreach_mul_([layer.lora_A for layer in layers.values()], rows)
        torch._foreach_mul_([layer.lora_B for layer in layers.values()], columns)
        return
    values: list[Tensor] = [layer.get_parameter("lora_E") for layer in layers.values()]
    masked = torch.cat(values).masked_fill_(~survivors.unsqueeze(1), 0.0)
    if reserved is not None:
        masked.masked_fill_(reserved.unsqueeze(1), _RESERVED)
    torch._foreach_copy_(values, masked.split(ranks))


Adapted = TypeVar("Adapted", bound=LinearAdapter)

# Modules that only wrap another one: the names under which they hold it are not part of a path.
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_WRAPPER_NAMES = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def svd_layers(model: nn.Module) -> dict[str, SVDLinear]:
    """All SVD layers that carry an adapter, as ``adapted_layers``."""
    return adapted_layers(model, SVDLinear)


def adapted_layers(model: nn.Module, kind: type[Adapted]) -> dict[str, Adapted]:
    """All layers of one kind that carry an adapter, by module path, in the model's order.

    Found by type. A path does not show wrappers (DistributedDataParallel's ``module``,
    torch.compile's ``_orig_mod``, FSDP's and activation checkpointing's), so it is the same
    before and after wrapping. A layer that appears twice is listed once.
    """
    return dict(_walk(model, kind, "", set()))


def _walk(
    module: nn.Module, kind: type[Adapted], path: str, seen: set[nn.Module]
) -> Iterator[tuple[str, Adapted]]:
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, kind) and module.has_adapter:
        yield path, module
    for name, child in module.named_children():
        hidden = name in _WRAPPER_NAMES or (name == "module" and isinstance(module, _WRAPPERS))
        yield from _walk(child, kind, path if hidden else f"{path}.{name}".lstrip("."), seen)


def require_svd_layers(model: nn.Module, purpose: str) -> dict[str, SVDLinear]:
    """As ``svd_layers``, for callers that cannot do without.

    Raises:
        ValueError: if the model has none; ``purpose`` says who needed them.
    """
    layers = svd_layers(model)
    if not layers:
        raise ValueError(
            f"{purpose} needs at least one SVDLinear with r > 0, and this "
            f"{type(model).__name__} has none; replace its nn.Linear layers first, for example "
            "with SVDLinear.from_linear(layer, r=12, lora_alpha=16)"
        )
    return layers


class Stacks:
    """A fixed list of tensors, grouped by shape, dtype and device.

    Later calls take lists of the same length and shapes.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        members: dict[tuple[torch.Size, torch.dtype, torch.device], list[int]] = defaultdict(list)
        for index, tensor in enumerate(tensors):
            members[tensor.shape, tensor.dtype, tensor.device].append(index)
        self.members = list(members.values())
        self.count = len(tensors)

    def stack(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """One tensor [members, ...] per group."""
        return [torch.stack([tensors[i] for i in group]) for group in self.members]

    def views(self, stacked: Sequence[Tensor]) -> list[Tensor]:
        """The groups' members in the order of the list, as views."""
        result: dict[int, Tensor] = {}
        for group, whole in zip(self.members, stacked, strict=True):
            result.update(zip(group, whole.unbind(), strict=True))
        return [result[index] for index in range(self.count)]

    def order(self, sizes: Sequence[int]) -> Tensor:
        """Where each entry of the list's concatenation stands in that of the groups, int64.

        ``sizes`` are the entries per tensor of the list.
        """
        starts, position = {}, 0
        for group in self.members:
            for index in group:
                starts[index] = position
                position += sizes[index]
        places = [torch.arange(starts[i], starts[i] + size) for i, size in enumerate(sizes)]
        return torch.cat(places)

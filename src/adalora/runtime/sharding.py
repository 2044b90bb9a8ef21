"""A frozen base sharded over the processes (``--shard_base``): torch's FSDP2 under its DDP.

What trains is small and stays whole in every process, its gradients averaged by
``DistributedDataParallel`` exactly as without sharding; so do importance, budget, masks, optimizer
and checkpoints, which know nothing of it. Of the base, which no optimizer touches, each process
keeps 1/N of every matrix, and gathers a layer when it computes with it, forward and backward.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from adalora.adapters.trainable import trainable_parameters
from adalora.errors import UserError
from adalora.runtime.machine import give_freed_memory_back

logger = logging.getLogger(__name__)


def shard_base(model: nn.Module, device: torch.device) -> None:
    """Divide the frozen parameters of ``model`` among the processes of the group, in place.

    It is adapted and frozen (``freeze_base``), on ``device``, and the same in every process; one of
    which nothing is frozen is refused.
    """
    whole = set(trainable_parameters(model).values())
    if all(parameter in whole for parameter in model.parameters()):
        raise UserError(
            "--shard_base divides what is frozen, and full fine-tuning trains everything; choose a "
            "method (--apply_lora, --apply_adapter, --apply_bitfit), or leave the flag out."
        )
    if device.type == "cpu":
        give_freed_memory_back()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    before = base_bytes(model)
    for unit in _units(model):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    logger.info(
        "The frozen base is divided among %d processes: %.1f MB of its %.1f MB are kept here.",
        dist.get_world_size(),
        base_bytes(model) / 1e6,
        before / 1e6,
    )


def _units(model: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at a time: the embedding table, each layer, and at last all the rest."""
    table = getattr(model, "get_input_embeddings", None)
    if callable(table):
        yield table()
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            inside.update(module.modules())
            yield from module
    yield model


def replicate_trained(model: nn.Module, device: torch.device, **options: Any) -> nn.Module:
    """Have the gradients of what trains averaged over the processes, after ``shard_base``.

    ``options`` are those of ``DistributedDataParallel``.
    """
    divided = [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, divided)
    devices = None if device.type == "cpu" else [device]
    return DistributedDataParallel(model, device_ids=devices, **options)


def base_bytes(model: nn.Module) -> int:
    """Bytes of the frozen parameters that this process holds."""
    held = [
        parameter.to_local() if isinstance(parameter, DTensor) else parameter
        for parameter in model.parameters()
        if not parameter.requires_grad
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)

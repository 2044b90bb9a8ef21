"""The trained part of a model as one safetensors file: what a training checkpoint holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from adalora.adapters.kinds import is_count
from adalora.errors import UserError
from adalora.storage.files import listed, not_finite, read_tensors, write_tensors


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter that trains, and ``ranknum``, which the update's scale divides by.

    Returns:
        Name -> a copy on the CPU, in its own dtype.
    """
    return {name: p.detach().cpu().clone() for name, p in trainable_parameters(model).items()}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of which ``trainable_state`` holds copies, by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or is_count(name)
    }


def save_trainable(model: nn.Module, file: str | Path) -> None:
    """Write ``trainable_state(model)`` to ``file``.

    Raises:
        UserError: if a parameter holds NaN or infinity.
    """
    write_tensors(Path(file), dict(trainable_parameters(model)))


def load_trainable(model: nn.Module, file: str | Path) -> None:
    """Read what ``save_trainable`` wrote into a model prepared in the same way.

    Raises:
        UserError: if the file is absent or damaged, holds NaN or infinity, or its names or shapes
            are not those of the model's trained parameters. The model is unchanged then.
    """
    tensors = read_tensors(Path(file))
    if bad := not_finite(tensors.items()):
        raise UserError(
            f"{file} holds NaN or infinity in {listed(bad)}: training had diverged. Choose an "
            "earlier checkpoint."
        )
    copy_exactly(tensors, trainable_parameters(model), source=str(file))


def copy_exactly(
    tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter], *, source: str
) -> None:
    """Copy ``tensors`` into ``parameters`` of the same names and shapes.

    Raises:
        UserError: naming what is missing, too many or of another shape; nothing is copied then.
    """
    missing = [name for name in parameters if name not in tensors]
    if missing:
        raise UserError(
            f"{source} lacks {listed(missing)}, which this model trains; it was written by another "
            "method or for another model."
        )
    extra = [name for name in tensors if name not in parameters]
    if extra:
        raise UserError(
            f"{source} holds {listed(extra)}, which this model does not train; it was written by "
            "another method or for another model."
        )
    if wrong := wrong_shapes(tensors, parameters):
        raise UserError(f"{source} holds tensors of another shape: {listed(wrong)}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


def wrong_shapes(tensors: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> list[str]:
    """Which tensors have not the shape of the parameter of their name, with both shapes."""
    return [
        f"{name} ({list(tensors[name].shape)}, expected {list(parameter.shape)})"
        for name, parameter in parameters.items()
        if tensors[name].shape != parameter.shape
    ]

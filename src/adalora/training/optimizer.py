"""Optimizer, learning-rate schedule and gradient scaler as tensors and numbers, by name.

torch keys an optimizer's state by position and keeps it in a pickle; here each entry is
``state/<parameter>/<quantity>``, so that it can be read, compared and checked without running
anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import loralib
from adalora.errors import UserError
from adalora.storage.files import listed


def optimizer_state(optimizer: Any, model: nn.Module) -> dict[str, Any]:
    """State of ``optimizer`` over the parameters of ``model``.

    Returns:
        ``state``: parameter name -> quantity -> tensor or number (AdamW: ``exp_avg`` and
        ``exp_avg_sq`` in the parameter's shape and dtype, ``step`` float32 []); ``groups``:
        position -> hyper-parameters and the names of its ``params``.
    """
    names = _names(optimizer, model)
    content = optimizer.state_dict()
    return {
        "state": {names[index]: dict(entry) for index, entry in content["state"].items()},
        "groups": {
            str(position): {**group, "params": [names[index] for index in group["params"]]}
            for position, group in enumerate(content["param_groups"])
        },
    }


def load_optimizer(
    optimizer: Any,
    model: nn.Module,
    stored: Mapping[str, Any],
    *,
    source: str,
    keep_hyperparameters: bool = False,
) -> None:
    """Put back what ``optimizer_state`` gave.

    Args:
        optimizer: a fresh one over ``model``.
        model: unwrapped.
        stored: from ``optimizer_state``.
        source: the file, for messages.
        keep_hyperparameters: learning rate, weight decay and so on stay those of ``optimizer``.

    Raises:
        UserError: if the names or shapes are not those of the parameters being optimized; nothing
            is changed then.
    """
    names = _names(optimizer, model)
    shapes = dict(model.named_parameters())
    groups = list(stored["groups"].values())
    known = {name for group in groups for name in group["params"]}
    if different := sorted(known.symmetric_difference(names)):
        raise UserError(
            f"{source} is of another set of trained parameters: {listed(different)} stand on one "
            "side only."
        )
    if unknown := sorted(set(stored["state"]) - known):
        raise UserError(f"{source} holds a state for {listed(unknown)}, which is not trained.")
    # torch's own optimizers keep each quantity in its parameter's shape or as a single number;
    # accelerate wraps them.
    if type(getattr(optimizer, "optimizer", optimizer)).__module__.startswith("torch.optim"):
        wrong = [
            f"{name} {quantity} ({list(value.shape)}, expected {list(shapes[name].shape)})"
            for name, entry in stored["state"].items()
            for quantity, value in entry.items()
            if isinstance(value, Tensor) and value.ndim and value.shape != shapes[name].shape
        ]
        if wrong:
            raise UserError(f"{source} holds tensors of another shape: {listed(wrong)}.")
    position = {name: index for index, name in enumerate(names)}
    here = optimizer.state_dict()["param_groups"]
    if not keep_hyperparameters:
        pairs = zip(here, groups, strict=True)
        here = [{**_like(own, group), "params": own["params"]} for own, group in pairs]
    state = {position[name]: dict(entry) for name, entry in stored["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": here})


def _names(optimizer: Any, model: nn.Module) -> list[str]:
    """Names of the optimized parameters in the order in which torch numbers them."""
    by_identity = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_identity[id(p)] for group in optimizer.param_groups for p in group["params"]]


def _like(own: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """``stored`` with tuples where ``own`` has them; JSON knows only lists."""
    return {
        key: tuple(value) if isinstance(own.get(key), tuple) else value
        for key, value in stored.items()
    }


def advance_scheduler(scheduler: Any, steps: int) -> None:
    """Bring a fresh learning-rate schedule to where it stands after ``steps`` steps."""
    with warnings.catch_warnings():
        # torch expects an optimizer step before each.
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()


def raise_learning_rate(optimizer: Optimizer, model: nn.Module, ratio: float) -> None:
    """Multiply the learning rate of the factor that starts at zero by ``ratio``.

    The parameters move to groups of their own, after the others, with the weight decay and all
    else of the group that they come from. Schedules multiply every group's own rate.

    ``optimizer`` is a fresh one over ``model``, without a schedule yet.
    """
    faster = {
        id(layer.factors()[layer.ZERO_FACTOR])
        for layer in model.modules()
        if isinstance(layer, loralib.LoRALayer) and layer.has_adapter
    }
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in faster]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in faster]
            optimizer.add_param_group({**group, "params": moved, "lr": group["lr"] * ratio})

"""Putting LoRA layers of a kind (``adalora.adapters.kinds``) in the place of linear ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

import loralib
from adalora.adapters.initialise import Initialisation, initialise
from adalora.adapters.kinds import LORA_KINDS
from adalora.adapters.targets import find_targets
from adalora.errors import UserError


def add_lora(
    model: nn.Module,
    *,
    lora_type: str,
    targets: Sequence[str],
    init_rank: int,
    lora_alpha: float,
    lora_dropout: float = 0.0,
    lora_init: Initialisation = "gaussian",
) -> list[str]:
    """Replace linear layers by adapted ones that share their weights; nothing is copied.

    The adapters are drawn from torch's global generator (``torch.manual_seed`` decides them), in
    the model's order. The model computes what it did before: the update starts at zero.

    Args:
        model: a loaded model without LoRA layers.
        lora_type: of ``LORA_KINDS``: ``frd`` (W + BA, plain LoRA), ``svd`` (W + PΛQ, AdaLoRA
            §3.1), ``dora``.
        targets: names, as in ``find_targets``.
        init_rank: triplets per matrix, at least 1.
        lora_alpha: scale numerator; the scale is ``lora_alpha / init_rank``.
        lora_dropout: dropout probability on the adapters' input, in [0, 1).
        lora_init: where the factors start (``adalora.adapters.initialise``).

    Returns:
        Paths of the adapted modules, in model order.

    Raises:
        UserError: if a value is out of its range, a name matches nothing, the rank is above a
            matrix's smaller side, or the model already has LoRA layers.
    """
    if lora_type not in LORA_KINDS:
        raise UserError(f"lora_type {lora_type!r} is unknown; choose {', '.join(LORA_KINDS)}.")
    if init_rank < 1:
        raise UserError(f"The initial rank (lora_r) must be at least 1, and is {init_rank}.")
    if not 0 <= lora_dropout < 1:
        raise UserError(f"lora_dropout must be at least 0 and below 1, and is {lora_dropout}.")
    adapted = [
        path for path, module in model.named_modules() if isinstance(module, loralib.LoRALayer)
    ]
    if adapted:
        raise UserError(
            f"The model already has {len(adapted)} LoRA layers, the first at {adapted[0]}; load "
            "the base model again to adapt it differently."
        )
    found = find_targets(model, targets)
    for path, module in found.items():
        linear = cast(nn.Linear, module)
        largest = min(linear.in_features, linear.out_features)
        if init_rank > largest:
            raise UserError(
                f"lora_r {init_rank} is above the largest rank of {path}, which is {largest} "
                f"({linear.out_features} x {linear.in_features}); lower it."
            )
    layer_class = LORA_KINDS[lora_type].layer
    for path, module in found.items():
        layer = layer_class.from_linear(
            cast(nn.Linear, module), r=init_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout
        )
        initialise(layer, lora_init, path=path)
        replace_module(model, path, layer)
    return list(found)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at ``path``, in the training or evaluation mode of what was there."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    module.train(parent.get_submodule(name).training)
    setattr(parent, name, module)

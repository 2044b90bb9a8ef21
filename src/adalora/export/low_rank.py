"""The low-rank updates of a model, taken off its layers: up · diag(values) · down · scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import loralib
from adalora.artefact.description import Description, LoRASettings
from adalora.artefact.reader import Artefact
from adalora.errors import UserError
from adalora.shell import program

__all__ = [
    "LowRank",
    "low_rank_updates",
    "refuse_bottleneck",
    "refuse_bypass",
    "refuse_peft",
    "require_lora",
    "require_lora_alone",
    "require_singular_values",
]


@dataclass(frozen=True)
class LowRank:
    """One matrix's update, ``scale * up @ diag(values) @ down``.

    ``down`` [r, in], ``up`` [out, r], ``values`` [r, 1], or None for plain LoRA, where they are 1;
    r is what pruning left, possibly 0.
    """

    down: Tensor
    up: Tensor
    values: Tensor | None
    scale: float
    #: DoRA's norm of each output [out]; None for an update that is no more than low-rank.
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        """Triplets that are there."""
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The update [out, in]."""
        down = self.down if self.values is None else self.down * self.values
        return self.up @ down * self.scale


def require_lora(artefact: Artefact) -> LoRASettings:
    """The LoRA settings of an artefact that has them, which ``refusals`` make sure of."""
    if artefact.description.lora is None:
        raise UserError("This run has no LoRA adapters.")
    return artefact.description.lora


def low_rank_updates(artefact: Artefact) -> dict[str, LowRank]:
    """Path -> update of every matrix that was adapted, those of rank 0 included, on the CPU."""
    settings = require_lora(artefact)
    return {
        path: _update(artefact.model.get_submodule(path), settings) for path in settings.targets
    }


def _update(layer: Any, settings: LoRASettings) -> LowRank:
    # The original's scale: by the initial rank, also after pruning.
    if settings.lora_type == "svd":
        alpha = settings.lora_alpha if settings.lora_alpha > 0 else float(settings.init_rank)
        scale = alpha / (settings.init_rank + 1e-5)
    else:
        scale = settings.lora_alpha / settings.init_rank
    if isinstance(layer, loralib.SVDLinear):
        return LowRank(_plain(layer.lora_A), _plain(layer.lora_B), _plain(layer.lora_E), scale)
    if isinstance(layer, loralib.Linear):
        magnitude = None
        if isinstance(layer, loralib.DoRALinear):
            magnitude = _plain(layer.lora_magnitude)
        return LowRank(_plain(layer.lora_A), _plain(layer.lora_B), None, scale, magnitude)
    # Pruned to rank 0: the base's plain layer is in its place.
    inputs, outputs = layer.in_features, layer.out_features
    values = torch.zeros(0, 1) if settings.lora_type == "svd" else None
    return LowRank(torch.zeros(0, inputs), torch.zeros(outputs, 0), values, scale)


def _plain(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().cpu()


def refuse_bottleneck(description: Description, name: str) -> None:
    """Bottleneck adapters hold an activation, so no weight of the base can absorb them."""
    if "bottleneck" in description.trained:
        raise UserError(
            f"This run trained bottleneck adapters ({description.adapter_type}), which are layers "
            f"of their own: {name} has no place for them. Export with --to onnx, or use the run "
            "itself."
        )


def refuse_bypass(description: Description, name: str) -> None:
    """With the bypass one matrix serves two ways, adapted and not: no single weight is both."""
    if description.position_query_bypass:
        raise UserError(
            "This run was trained with --position_query_bypass, where the positional query leaves "
            f"the adapter out: {name} would compute something else. Export with --to onnx or "
            "--to loralib, or train without the bypass."
        )


def refuse_peft(description: Description, name: str) -> None:
    """What a run of PEFT's methods leaves is PEFT's own folder, and not in our layers."""
    if "peft" in description.trained:
        raise UserError(
            f"This run was trained by {description.method}, and its model/ is an adapter folder "
            f"of PEFT already. For {name}, read it in by '{program('adalora')} import' (LoRA and "
            "AdaLoRA) and export that, or merge it with PEFT (merge_and_unload)."
        )


def require_lora_alone(description: Description, name: str) -> None:
    """Adapter formats hold low-rank updates and the head, nothing else."""
    refuse_peft(description, name)
    if description.lora is None:
        raise UserError(
            f"This run was trained by {description.method} and has no LoRA to write as {name}; "
            f"{_way_out(description)}."
        )
    others = [part for part in description.trained if part != "lora"]
    if others:
        raise UserError(
            f"This run trained {' and '.join(others)} beside LoRA, which {name} does not hold; "
            f"{_way_out(description)}."
        )


def _way_out(description: Description) -> str:
    works = "onnx" if "bottleneck" in description.trained else "merged"
    return f"export with --to {works}"


def require_singular_values(description: Description, name: str) -> None:
    """Plain LoRA has no singular values for AdaLoRA's format."""
    if description.lora is None or description.lora.lora_type != "svd":
        raise UserError(
            f"This run was trained by {description.method}, without singular values, and {name} "
            "is AdaLoRA's format; export with --to lora."
        )

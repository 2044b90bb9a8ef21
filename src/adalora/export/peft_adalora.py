"""``peft-adalora``: PEFT's AdaLoRA, as its ``from_pretrained`` reads it.

Every matrix is there, those of rank 0 with empty factors. ``rank_pattern`` marks which of the
``init_rank`` triplets survived; where they stood is not in the artefact and changes nothing, so the
first ones are marked. PEFT slices by the pattern and, as the original, divides the scale by the
initial rank. Its configuration must hold a schedule that leaves room for pruning even where none is
to happen: the shortest one. To train on, give PEFT a schedule of your own.
"""

from __future__ import annotations

from pathlib import Path

from adalora.artefact.reader import Artefact
from adalora.export.low_rank import (
    low_rank_updates,
    refuse_bypass,
    require_lora,
    require_lora_alone,
    require_singular_values,
)
from adalora.export.peft_folder import peft_fields, peft_usage, read_peft, write_peft

__all__ = ["read", "refuse", "usage", "write"]

read = read_peft
usage = peft_usage


def refuse(artefact: Artefact) -> None:
    """Refuse what is not AdaLoRA's parameterisation."""
    require_lora_alone(artefact.description, "peft-adalora")
    require_singular_values(artefact.description, "peft-adalora")
    refuse_bypass(artefact.description, "peft-adalora")


def write(artefact: Artefact, target: Path) -> None:
    """Three factors per matrix, [r, in], [r, 1] and [out, r] of the r triplets kept."""
    from peft import AdaLoraConfig

    settings = require_lora(artefact)
    updates = low_rank_updates(artefact)
    rank = settings.init_rank
    kept = sum(update.rank for update in updates.values())
    config = AdaLoraConfig(
        init_r=rank,
        target_r=round(kept / len(updates)),
        # PEFT reads 0 as the rank after pruning, the original as the rank before.
        lora_alpha=settings.lora_alpha if settings.lora_alpha > 0 else rank,  # type: ignore[arg-type]
        rank_pattern={
            f"{path}.lora_E": [index < update.rank for index in range(rank)]
            for path, update in updates.items()
        },
        target_modules=list(updates),
        total_step=1,
        **peft_fields(artefact),
    )
    factors = {}
    for path, update in updates.items():
        assert update.values is not None
        factors[f"{path}.lora_A"] = update.down
        factors[f"{path}.lora_E"] = update.values
        factors[f"{path}.lora_B"] = update.up
    write_peft(artefact, target, config, factors)

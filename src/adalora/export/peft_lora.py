"""``lora``: PEFT's plain LoRA, the singular values taken into ``lora_A``.

PEFT scales by alpha / r of each matrix. Every matrix keeps the run's scale lora_alpha / init_rank,
whatever rank it was pruned to, by its entry in ``rank_pattern`` and ``alpha_pattern``; a matrix of
rank 0 is no target, so that nothing of it is stored or computed. DoRA is the same with its norms.
"""

from __future__ import annotations

from pathlib import Path

from adalora.artefact.reader import Artefact
from adalora.errors import UserError
from adalora.export.low_rank import LowRank, low_rank_updates, refuse_bypass, require_lora_alone
from adalora.export.peft_folder import peft_fields, peft_usage, read_peft, write_peft

__all__ = ["read", "refuse", "usage", "write"]

read = read_peft
usage = peft_usage


def refuse(artefact: Artefact) -> None:
    """Refuse what is not LoRA, or has none of it left."""
    require_lora_alone(artefact.description, "lora")
    refuse_bypass(artefact.description, "lora")
    if not _kept(artefact):
        raise UserError(
            "Every matrix of this run was pruned to rank 0, and PEFT refuses an adapter without "
            "matrices; export with --to merged, which holds the trained head on its base."
        )


def write(artefact: Artefact, target: Path) -> None:
    """One pair of factors per matrix kept."""
    from peft import LoraConfig

    updates = _kept(artefact)
    rank = max(update.rank for update in updates.values())
    # The scale is the same everywhere; PEFT divides by each matrix's own rank.
    scale = next(iter(updates.values())).scale
    others = {path: update.rank for path, update in updates.items() if update.rank != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=scale * rank,  # type: ignore[arg-type] # PEFT takes any number
        rank_pattern=others,
        alpha_pattern={path: scale * own for path, own in others.items()},
        target_modules=list(updates),
        use_dora=any(update.magnitude is not None for update in updates.values()),
        **peft_fields(artefact),
    )
    factors = {}
    for path, update in updates.items():
        down = update.down if update.values is None else update.down * update.values
        factors[f"{path}.lora_A.weight"] = down
        factors[f"{path}.lora_B.weight"] = update.up
        if update.magnitude is not None:
            factors[f"{path}.lora_magnitude_vector"] = update.magnitude
    write_peft(artefact, target, config, factors)


def _kept(artefact: Artefact) -> dict[str, LowRank]:
    return {path: update for path, update in low_rank_updates(artefact).items() if update.rank}

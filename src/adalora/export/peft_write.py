"""``lora`` and ``peft-adalora``: adapter folders as PEFT's own ``from_pretrained`` reads them.

``adapter_config.json`` and ``adapter_model.safetensors``; names of tensors are module paths behind
``base_model.model.``. The head (pooler and classifier) travels in ``modules_to_save``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adalora.adapters.head import head_modules, head_names
from adalora.adapters.merge import base_without_head
from adalora.artefact.reader import Artefact
from adalora.builtin import nano_path
from adalora.errors import UserError
from adalora.export.low_rank import low_rank_updates, require_lora
from adalora.export.verify import predictor
from adalora.pretrained.loading import NANO
from adalora.storage.files import read_json, write_json, write_tensors

if TYPE_CHECKING:
    from peft import PeftConfig

    from adalora.export.formats import Predict


CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


class _PeftFolder:
    """What PEFT's LoRA and its AdaLoRA share."""

    def read(self, artefact: Artefact, target: Path) -> Predict:
        """By PEFT, on a base whose head is zero: what it computes comes from the folder."""
        from peft import PeftModel

        return predictor(PeftModel.from_pretrained(base_without_head(artefact.model), str(target)))

    def usage(self, artefact: Artefact, target: Path) -> str:
        """The two lines that load it."""
        description = artefact.description
        base = _fields(artefact)["base_model_name_or_path"]
        return (
            f'base = transformers.AutoModelForSequenceClassification.from_pretrained("{base}", '
            f"num_labels={description.num_labels}, ignore_mismatched_sizes=True)\n"
            f'model = peft.PeftModel.from_pretrained(base, "{target}")'
        )


class LoraFolder(_PeftFolder):
    """PEFT's plain LoRA, the singular values taken into ``lora_A``.

    PEFT scales by alpha / r of each matrix. Every matrix keeps the run's scale lora_alpha /
    init_rank, whatever rank it was pruned to, by its entry in ``rank_pattern`` and
    ``alpha_pattern``; a matrix of rank 0 is no target, so that nothing of it is stored or
    computed. DoRA is the same with its norms.
    """

    def write(self, artefact: Artefact, target: Path) -> None:
        """One pair of factors per matrix kept."""
        from peft import LoraConfig

        updates = {path: u for path, u in low_rank_updates(artefact).items() if u.rank}
        if not updates:
            raise UserError(
                "Every matrix of this run was pruned to rank 0, and PEFT refuses an adapter "
                "without matrices; export with --to merged, which holds the trained head on its "
                "base."
            )
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
            **_fields(artefact),
        )
        factors = {}
        for path, update in updates.items():
            down = update.down if update.values is None else update.down * update.values
            factors[f"{path}.lora_A.weight"] = down
            factors[f"{path}.lora_B.weight"] = update.up
            if update.magnitude is not None:
                factors[f"{path}.lora_magnitude_vector"] = update.magnitude
        _write(artefact, target, config, factors)


class AdaLoraFolder(_PeftFolder):
    """PEFT's AdaLoRA.

    Every matrix is there, those of rank 0 with empty factors. ``rank_pattern`` marks which of the
    ``init_rank`` triplets survived; where they stood is not in the artefact and changes nothing,
    so the first ones are marked. PEFT slices by the pattern and, as the original, divides the
    scale by the initial rank. Its configuration must hold a schedule that leaves room for pruning
    even where none is to happen: the shortest one. To train on, give PEFT a schedule of your own.
    """

    def write(self, artefact: Artefact, target: Path) -> None:
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
            **_fields(artefact),
        )
        factors = {}
        for path, update in updates.items():
            assert update.values is not None
            factors[f"{path}.lora_A"] = update.down
            factors[f"{path}.lora_E"] = update.values
            factors[f"{path}.lora_B"] = update.up
        _write(artefact, target, config, factors)


def _fields(artefact: Artefact) -> dict[str, Any]:
    """Arguments of PEFT's configuration that do not depend on the method."""
    description = artefact.description
    base = description.base_model
    return {
        "task_type": "SEQ_CLS",
        "inference_mode": True,
        "base_model_name_or_path": str(nano_path()) if base == NANO else base,
        "revision": description.revision,
        "modules_to_save": head_modules(artefact.model),
        "lora_dropout": 0.0 if description.lora is None else description.lora.lora_dropout,
    }


def _write(
    artefact: Artefact, target: Path, config: PeftConfig, factors: Mapping[str, Tensor]
) -> None:
    """Write configuration, ``factors`` by PEFT's names below the prefix, head and tokenizer."""
    config.save_pretrained(str(target))
    values = read_json(target / CONFIG_FILE)
    # PEFT writes a set, whose order differs from run to run.
    values["target_modules"] = sorted(values["target_modules"])
    write_json(target / CONFIG_FILE, values)
    state = artefact.model.state_dict()
    head = {name: state[name] for name in head_names(artefact.model)}
    tensors = {PREFIX + name: tensor for name, tensor in {**factors, **head}.items()}
    write_tensors(target / TENSOR_FILE, tensors)
    if artefact.tokenizer is not None:
        artefact.tokenizer.save_pretrained(target)

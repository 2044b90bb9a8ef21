"""The folder that PEFT calls an adapter: what its LoRA and its AdaLoRA share.

``adapter_config.json`` beside ``adapter_model.safetensors``; names of tensors are module paths
behind ``base_model.model.``. The head (pooler and classifier) travels in ``modules_to_save``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adalora.adapters.freeze import head_names
from adalora.adapters.head import head_modules
from adalora.adapters.merge import base_without_head
from adalora.artefact.reader import Artefact
from adalora.builtin import nano_path
from adalora.export.verify import predictor
from adalora.pretrained.loading import NANO
from adalora.storage.files import read_json, write_json, write_tensors

if TYPE_CHECKING:
    from peft import PeftConfig

    from adalora.export.formats import Predict

__all__ = [
    "CONFIG_FILE",
    "PREFIX",
    "TENSOR_FILE",
    "peft_fields",
    "peft_usage",
    "read_peft",
    "write_peft",
]

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."


def peft_fields(artefact: Artefact) -> dict[str, Any]:
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


def write_peft(
    artefact: Artefact, target: Path, config: PeftConfig, factors: Mapping[str, Tensor]
) -> None:
    """Write configuration, ``factors`` by PEFT's names below the prefix, head and tokenizer.

    Raises:
        UserError: if a tensor holds NaN or infinity.
    """
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


def read_peft(artefact: Artefact, target: Path) -> Predict:
    """By PEFT, on a base whose head is zero: what it computes comes from the folder."""
    from peft import PeftModel

    return predictor(PeftModel.from_pretrained(base_without_head(artefact.model), str(target)))


def peft_usage(artefact: Artefact, target: Path) -> str:
    """The two lines that load it."""
    description = artefact.description
    base = peft_fields(artefact)["base_model_name_or_path"]
    return (
        f'base = transformers.AutoModelForSequenceClassification.from_pretrained("{base}", '
        f"num_labels={description.num_labels}, ignore_mismatched_sizes=True)\n"
        f'model = peft.PeftModel.from_pretrained(base, "{target}")'
    )

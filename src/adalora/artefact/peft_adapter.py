"""The adapter folder of PEFT as an artefact: written and read by PEFT itself.

Such a run is a baseline, so what it leaves is what PEFT's users have; the description next to it
adds what PEFT does not note (labels, task, texts, lengths), by which the other commands use it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from adalora.errors import UserError
from adalora.shell import program
from adalora.storage.files import listed, not_finite, read_json, write_json

#: Tensors first.
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")


def write_peft_adapter(model: nn.Module, folder: Path) -> None:
    """Have PEFT save ``model``, a ``peft.PeftModel``, to ``folder``.

    Raises:
        UserError: if a trained parameter holds NaN or infinity.
    """
    trained = ((name, p.detach()) for name, p in model.named_parameters() if p.requires_grad)
    if bad := not_finite(trained):
        raise UserError(
            f"Refusing to write {folder}: {listed(bad)} holds NaN or infinity, so training has "
            "diverged. Lower the learning rate, or go back to an earlier checkpoint."
        )
    with warnings.catch_warnings():
        # PEFT takes a matrix that AdaLoRA pruned to rank 0 for one that was cut up by DeepSpeed.
        warnings.filterwarnings("ignore", message=".*invalid shape")
        cast(Any, model).save_pretrained(str(folder))
    # PEFT's own card; ours is written with the description.
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT writes sets, whose order differs from run to run.
    config = read_json(folder / PEFT_FILES[1])
    for name, value in config.items():
        if name in ("target_modules", "feedforward_modules") and isinstance(value, list):
            config[name] = sorted(value)
    write_json(folder / PEFT_FILES[1], config)


def load_peft_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``model``, a base with a head, wrapped in what ``folder`` holds.

    Returns:
        A ``peft.PeftModel`` in evaluation mode, which is called like a classifier, without labels:
        PEFT's AdaLoRA fails on them in this state.

    Raises:
        UserError: if PEFT is not installed or refuses the folder.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(
            f"{folder} holds an adapter of PEFT, and peft is not installed here: type "
            f"{program('pip')} install 'adalora[peft]'."
        ) from error
    try:
        with warnings.catch_warnings():
            # PEFT looks for LoRA's kind of rank_pattern in AdaLoRA's, and does not find it.
            warnings.simplefilter("ignore")
            loaded = peft.PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # PEFT has no exception of its own
        reason = " ".join((str(error) or repr(error)).split())
        raise UserError(f"PEFT cannot read the adapter in {folder}: {reason:.300}") from error
    return cast(PreTrainedModel, loaded)

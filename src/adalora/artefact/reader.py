"""Reading an artefact: its description, its tensors, and the model that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.artefact.base_encoder import BaseEncoder
from adalora.artefact.description import (
    Description,
    Origin,
    read_description,
    record_origins,
)
from adalora.artefact.folder import check_files, find_artefact
from adalora.artefact.peft_adapter import load_peft_adapter
from adalora.artefact.rebuild import (
    ADAPTER_FILE,
    check_base,
    check_outputs,
    check_whole,
    read_adapter,
    restore,
)
from adalora.errors import UserError
from adalora.pretrained.loading import load_classifier, load_tokenizer
from adalora.storage.files import file_checksum

__all__ = [
    "Artefact",
    "load_artefact",
    "origins_of",
]


@dataclass(frozen=True)
class Artefact:
    """A model ready to use, in evaluation mode, with its tokenizer and its description.

    ``base`` is the encoder that further artefacts can be put on; None after full fine-tuning.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    description: Description
    base: BaseEncoder | None = None


def load_artefact(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    base_model: str | None = None,
    beside: Artefact | None = None,
) -> Artefact:
    """Rebuild the model that ``save_artefact`` wrote.

    Args:
        folder: holds the artefact, or is the root of a run.
        device: where the model goes; not used with ``beside``.
        base_model: hub name or folder of the base, if it is elsewhere than it was.
        beside: an artefact loaded before; the new model shares the tensors of its base, and its
            tokenizer if that is the same.

    Raises:
        UserError: if the artefact is absent, incomplete or damaged, or the base is another one.
    """
    source = find_artefact(folder)
    description = read_description(source)
    check_files(source, description)
    check_outputs(source, description)
    base = None
    if "full" in description.trained:
        if beside is not None:
            raise UserError(
                f"The model in {source} was fine-tuned whole, so it cannot share a base with "
                "others; load it by itself."
            )
        model = _load_base(str(source), description)
        check_whole(model, source)
    elif "peft" in description.trained:
        if beside is not None:
            raise UserError(
                f"The adapter in {source} is PEFT's, which shares no base with others here; load "
                "it by itself."
            )
        model = _load_base(base_model or description.base_model, description, base_model)
        model = load_peft_adapter(model, source)
    else:
        tensors = read_adapter(source, description)
        if beside is None or beside.base is None:
            model = _load_base(base_model or description.base_model, description, base_model)
            nn.Module.to(model, device)
            base = BaseEncoder.of(model)
        else:
            base = beside.base
            _check_type(str(base.config.model_type), description, source, "the base in memory")
            model = base.classifier(description)
        where = base_model or description.base_model
        check_base(base, description, tensors, source=source, where=where)
        restore(model, tensors, description, source=source)
        record_origins(model, *origins_of(source, description))
    own = _tokenizer_files(description)
    tokenizer = None
    if own and beside is not None and own == _tokenizer_files(beside.description):
        tokenizer = beside.tokenizer
    elif own:
        tokenizer = load_tokenizer(str(source))
    model.eval()
    nn.Module.to(model, device if base is None else model.device)
    return Artefact(model=model, tokenizer=tokenizer, description=description, base=base)


def _tokenizer_files(description: Description) -> dict[str, str | None]:
    """Name -> checksum of the tokenizer's files."""
    return {
        name: description.checksums.get(name) for name in description.files if "tokenizer" in name
    }


def _load_base(name: str, description: Description, moved_to: str | None = None) -> PreTrainedModel:
    """The base (or whole) model ``name`` with a head for the outputs described."""
    whole = "full" in description.trained
    model = load_classifier(
        name,
        num_labels=description.num_labels,
        labels=description.labels,
        is_regression=description.is_regression,
        task_name=description.task,
        revision="main" if whole or moved_to else description.revision or "main",
        cls_dropout=description.cls_dropout,
        dtype=description.torch_dtype,
        position_query_bypass=description.position_query_bypass,
        head_follows=True,
    )
    _check_type(str(model.config.model_type), description, "The artefact", name)
    return model


def _check_type(found: str, description: Description, source: object, name: str) -> None:
    if found != description.model_type:
        raise UserError(
            f"{source} was trained on a {description.model_type} model, and {name} is a {found} "
            "model."
        )


def origins_of(folder: Path, description: Description) -> tuple[Origin, ...]:
    """The lineage of what starts from the artefact in ``folder``: itself, and what it came from."""
    itself = Origin(
        path=str(folder.resolve()),
        sha256=file_checksum(folder / ADAPTER_FILE),
        method=description.method,
        task=description.task,
        created=description.created,
    )
    return (itself, *description.lineage)

"""The one folder a run leaves: trained tensors, tokenizer, and a description that is written last.

``adapter.safetensors`` holds what trained outside the head; of an SVD matrix only the triplets
that were kept, so a matrix of rank 0 leaves nothing. ``head.safetensors`` is pooler and classifier.
Full fine-tuning leaves ``config.json`` and ``model.safetensors`` instead. The folder may hold other
files (the Trainer keeps its checkpoints there), so it is never replaced as a whole: each file is
written aside and renamed, and ``adalora.json`` names them all. Without it there is no artefact.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import loralib
from adalora.adapters import add_bottleneck, freeze_base
from adalora.adapters.bottleneck import AdapterType
from adalora.adapters.freeze import Method
from adalora.adapters.head import is_head
from adalora.adapters.lora import LORA_LAYERS, replace_module
from adalora.checkpoints.description import (
    MANIFEST,
    Description,
    LoRASettings,
    read_description,
)
from adalora.checkpoints.files import listed, read_tensors, write_json, write_tensors
from adalora.checkpoints.trainable import copy_exactly
from adalora.errors import UserError
from adalora.pretrained import load_classifier, load_tokenizer

__all__ = ["ADAPTER_FILE", "HEAD_FILE", "MODEL_FILE", "Artefact", "load_artefact", "save_artefact"]

ADAPTER_FILE = "adapter.safetensors"
HEAD_FILE = "head.safetensors"
MODEL_FILE = "model.safetensors"
# What an artefact of another method would leave behind.
_OWN_FILES = (ADAPTER_FILE, HEAD_FILE, MODEL_FILE, "config.json")


@dataclass(frozen=True)
class Artefact:
    """A model ready to use, in evaluation mode, with its tokenizer and its description."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    description: Description


def save_artefact(
    folder: str | Path,
    model: nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    description: Description,
    rank_pattern: Mapping[str, int] | None = None,
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Description:
    """Write the artefact of ``model`` to ``folder``.

    Triplets that pruning set to zero are left out, as many as ``rank_pattern`` allows; one that is
    not zero is always kept, so that what is saved computes what ``model`` computes.

    Args:
        folder: made if absent; other files in it are left alone.
        model: an unwrapped model as ``freeze_base`` prepared it.
        tokenizer: saved beside the tensors; None for none.
        description: from ``Description.of(model, ...)``.
        rank_pattern: ``<module>.lora_E`` -> triplets kept by the allocator; None or {} for all.
        metrics: kept in the description.
        overwrite: replace an artefact that is already there.

    Returns:
        The description as written, with the ranks that were saved.

    Raises:
        UserError: if there is an artefact already and ``overwrite`` is False, a parameter holds
            NaN or infinity, or the pattern names a matrix that the model does not have.
    """
    target = Path(folder)
    if (target / MANIFEST).exists() and not overwrite:
        raise UserError(f"{target} already holds an artefact; pass overwrite=True to replace it.")
    tensors, ranks = _collect(model, description, dict(rank_pattern or {}))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".artefact-", dir=target) as name:
        aside = Path(name)
        for file, content in tensors.items():
            write_tensors(aside / file, content)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        if MODEL_FILE in tensors:
            cast(PreTrainedModel, model).config.save_pretrained(aside)
        written = {
            path.relative_to(aside).as_posix(): path.stat().st_size
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        }
        complete = replace(
            description, rank_pattern=ranks, metrics=dict(metrics or {}), files=written
        )
        write_json(aside / MANIFEST, complete.as_json())
        # From here until the manifest is in its place, the folder holds no artefact.
        replaced = (target / MANIFEST).exists()
        (target / MANIFEST).unlink(missing_ok=True)
        if replaced:
            for path in set(_OWN_FILES) - set(written):
                (target / path).unlink(missing_ok=True)
        for path in (*written, MANIFEST):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / path, target / path)
    return complete


def _collect(
    model: nn.Module, description: Description, pattern: dict[str, int]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """Tensors by file, and the ranks that are saved."""
    if "full" in description.trained:
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        return {MODEL_FILE: state}, {}
    head: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if is_head(model, name):
            head[name] = parameter.detach()
        elif parameter.requires_grad:
            adapter[name] = parameter.detach()
    ranks: dict[str, int] = {}
    for path, module in model.named_modules():
        if not (isinstance(module, loralib.SVDLinear) and module.has_adapter):
            continue
        key = f"{path}.lora_E"
        kept = _kept_triplets(module, pattern.pop(key, module.r))
        ranks[key] = len(kept)
        factors = {"lora_A": module.lora_A[kept], "lora_E": module.lora_E[kept]}
        factors["lora_B"] = module.lora_B[:, kept]
        for name, tensor in factors.items():
            adapter.pop(f"{path}.{name}", None)
            if len(kept):
                adapter[f"{path}.{name}"] = tensor.detach()
    # A matrix of rank 0 may be absent: loading leaves a plain linear layer in its place.
    unknown = [key for key, rank in pattern.items() if rank]
    if unknown:
        raise UserError(
            f"The rank pattern names {listed(unknown)}, and the model has no such matrix."
        )
    if description.lora is not None and description.lora.lora_type == "svd":
        # A matrix that the model no longer carries, because it was loaded with rank 0.
        every = (f"{path}.lora_E" for path in description.lora.targets)
        ranks = {key: ranks.get(key, 0) for key in every}
    return {ADAPTER_FILE: adapter, HEAD_FILE: head}, ranks


def _kept_triplets(layer: loralib.SVDLinear, rank: int) -> Tensor:
    """Positions of the triplets to save: ``rank`` of the largest, and every one not zero."""
    values = layer.lora_E.detach().abs().flatten()
    count = min(layer.r, max(rank, int((values != 0).sum())))
    order = torch.argsort(values, descending=True, stable=True)
    return order[:count].sort().values


def load_artefact(
    folder: str | Path, device: str | torch.device = "cpu", *, base_model: str | None = None
) -> Artefact:
    """Rebuild the model that ``save_artefact`` wrote.

    Args:
        folder: holds the artefact.
        device: where the model goes.
        base_model: hub name or folder of the base, if it is elsewhere than it was.

    Raises:
        UserError: if the artefact is absent, incomplete or damaged, or the base is another one.
    """
    source = Path(folder)
    description = read_description(source)
    _check_files(source, description)
    whole = "full" in description.trained
    model = load_classifier(
        str(source) if whole else base_model or description.base_model,
        num_labels=description.num_labels,
        labels=description.labels,
        is_regression=description.is_regression,
        task_name=description.task,
        revision="main" if whole or base_model else description.revision or "main",
        cls_dropout=description.cls_dropout,
        dtype=description.torch_dtype,
        position_query_bypass=description.position_query_bypass,
    )
    found = str(model.config.model_type)
    if found != description.model_type:
        raise UserError(
            f"{source} was trained on a {description.model_type} model, and "
            f"{base_model or description.base_model} is a {found} model."
        )
    if not whole:
        _restore(model, source, description)
    tokenizer = None
    if any("tokenizer" in name for name in description.files):
        tokenizer = load_tokenizer(str(source))
    model.eval()
    nn.Module.to(model, device)
    return Artefact(model=model, tokenizer=tokenizer, description=description)


def _check_files(source: Path, description: Description) -> None:
    for name, size in description.files.items():
        path = source / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "missing" if found is None else f"{found} bytes long instead of {size}"
            raise UserError(
                f"The artefact in {source} is damaged: {name} is {state}. Copy it again, or train "
                "again."
            )


def _restore(model: PreTrainedModel, source: Path, description: Description) -> None:
    """Put the adapters on the base and fill them and the head."""
    tensors = read_tensors(source / ADAPTER_FILE) | read_tensors(source / HEAD_FILE)
    if description.lora is not None:
        _rebuild_lora(model, description.lora, description.rank_pattern)
    if description.adapter_type is not None:
        add_bottleneck(
            model,
            adapter_type=cast(AdapterType, description.adapter_type),
            adapter_size=description.adapter_size or 0,
        )
    available = [m for m in description.trained if m != "lora" or _has_lora(model)]
    if available:
        freeze_base(model, train=cast("list[Method]", available))
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_head(model, name))
    parameters = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    copy_exactly(tensors, parameters, source=str(source))


def _has_lora(model: nn.Module) -> bool:
    return any(isinstance(module, loralib.LoRALayer) for module in model.modules())


def _rebuild_lora(
    model: nn.Module, settings: LoRASettings, rank_pattern: Mapping[str, int]
) -> None:
    """LoRA layers of the ranks kept, with the scale of the initial rank; none where it is 0."""
    layer_class = LORA_LAYERS[settings.lora_type]
    for path in settings.targets:
        try:
            linear = model.get_submodule(path)
        except AttributeError as error:
            raise UserError(f"The base model has no module {path}; it is another one.") from error
        if not isinstance(linear, nn.Linear):
            raise UserError(f"{path} of the base model is no linear layer; it is another one.")
        rank = rank_pattern.get(f"{path}.lora_E", settings.init_rank)
        if rank == 0:
            continue
        layer = layer_class.from_linear(
            linear, r=rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout
        )
        if isinstance(layer, loralib.SVDLinear):
            # The original's scale divides by the initial rank, also after pruning.
            layer.ranknum.data.fill_(settings.init_rank)
            if settings.lora_alpha <= 0:
                layer.scaling = float(settings.init_rank)
        replace_module(model, path, layer)

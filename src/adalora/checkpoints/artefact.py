"""The one folder a run leaves: trained tensors, tokenizer, and a description that is written last.

``adapter.safetensors`` holds what trained outside the head; of an SVD matrix only the triplets
that were kept, so a matrix of rank 0 leaves nothing. ``head.safetensors`` is pooler and classifier.
Full fine-tuning leaves ``config.json`` and ``model.safetensors`` instead. The folder may hold other
files (the Trainer keeps its checkpoints there), so it is never replaced as a whole: each file is
written aside and renamed, and ``adalora.json`` names them all. Without it there is no artefact.
``README.md``, the model card, is for people and is not among the files that are checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import loralib
from adalora.adapters.head import is_head
from adalora.adapters.lora import RankedLayer
from adalora.checkpoints.anchored import with_anchor
from adalora.checkpoints.base import BaseEncoder
from adalora.checkpoints.card import CARD_FILE, is_ours, model_card
from adalora.checkpoints.description import MANIFEST, Description, read_description
from adalora.checkpoints.files import file_checksum, listed, write_json, write_tensors
from adalora.checkpoints.folder import check_files, find_artefact, prepared, publish, sole_writer
from adalora.checkpoints.lineage import Origin, record_origins
from adalora.checkpoints.peft_adapter import PEFT_FILES, load_peft_adapter, write_peft_adapter
from adalora.checkpoints.rebuild import (
    ADAPTER_FILE,
    HEAD_FILE,
    MODEL_FILE,
    check_base,
    check_outputs,
    check_whole,
    read_adapter,
    restore,
)
from adalora.errors import UserError
from adalora.pretrained import load_classifier, load_tokenizer

__all__ = [
    "ADAPTER_FILE",
    "HEAD_FILE",
    "MODEL_FILE",
    "Artefact",
    "load_artefact",
    "origins_of",
    "save_artefact",
]

# What an artefact of another method would leave behind.
_OWN_FILES = (ADAPTER_FILE, HEAD_FILE, MODEL_FILE, "config.json", *PEFT_FILES)


@dataclass(frozen=True)
class Artefact:
    """A model ready to use, in evaluation mode, with its tokenizer and its description.

    ``base`` is the encoder that further artefacts can be put on; None after full fine-tuning.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    description: Description
    base: BaseEncoder | None = None


def save_artefact(
    folder: str | Path,
    model: nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    description: Description,
    rank_pattern: Mapping[str, int] | None = None,
    metrics: Mapping[str, Any] | None = None,
    base_fingerprint: str | None = None,
    overwrite: bool = False,
) -> Description:
    """Write the artefact of ``model`` to ``folder``.

    Triplets that pruning set to zero are left out, as many as ``rank_pattern`` allows; one that is
    not zero is always kept, so that what is saved computes what ``model`` computes. Doublets of
    plain LoRA likewise, if ``rank_pattern`` names their matrices.

    Args:
        folder: made if absent; other files in it are left alone.
        model: an unwrapped model as ``freeze_base`` prepared it.
        tokenizer: saved beside the tensors; None for none.
        description: from ``Description.of(model, ...)``.
        rank_pattern: ``<module>.lora_E`` -> triplets kept by the allocator; None or {} for all.
        metrics: kept in the description.
        base_fingerprint: of the base, where ``model`` holds only a part of it (``--shard_base``);
            None takes it from ``model``.
        overwrite: replace an artefact that is already there.

    Returns:
        The description as written, with the ranks that were saved.

    Raises:
        UserError: if there is an artefact already (or files of its names) and ``overwrite`` is
            False, a parameter holds NaN or infinity, the pattern names a matrix that the model
            does not have, the folder cannot be written, or another process is writing there. What
            was there is as it was then.
    """
    target = Path(folder)
    if (target / MANIFEST).exists() and not overwrite:
        raise UserError(f"{target} already holds an artefact; pass overwrite=True to replace it.")
    tensors, ranks = _collect(model, description, dict(rank_pattern or {}))
    fingerprint = base_fingerprint
    if fingerprint is None and ADAPTER_FILE in tensors:
        fingerprint = BaseEncoder.of(model).fingerprint(without=tensors[ADAPTER_FILE])
    with sole_writer(target), prepared(target) as aside:
        for file, content in tensors.items():
            write_tensors(aside / file, content)
        if "peft" in description.trained:
            write_peft_adapter(model, aside)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, aside)
        if MODEL_FILE in tensors:
            cast(PreTrainedModel, model).config.save_pretrained(aside)
        written = {
            path.relative_to(aside).as_posix(): path
            for path in sorted(aside.rglob("*"))
            if path.is_file()
        }
        complete = replace(
            description,
            rank_pattern=ranks,
            metrics=dict(metrics or {}),
            base_fingerprint=fingerprint,
            files={name: path.stat().st_size for name, path in written.items()},
            checksums={name: file_checksum(path) for name, path in written.items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json(aside / MANIFEST, complete.as_json())
        names = list(written)
        if not (target / CARD_FILE).exists() or is_ours(target / CARD_FILE):
            (aside / CARD_FILE).write_text(model_card(complete), encoding="utf-8")
            names.append(CARD_FILE)
        _make_way(target, written, overwrite)
        publish(aside, target, names)
    return complete


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library has no class of its own for failed writes
        raise OSError(f"the tokenizer could not be saved: {error}") from error


def _make_way(target: Path, written: Mapping[str, Path], overwrite: bool) -> None:
    """Refuse to replace files that are no part of an artefact; remove what would be left of one."""
    if (target / MANIFEST).exists():
        if not overwrite:
            raise UserError(f"{target} has become an artefact meanwhile; choose another folder.")
        for name in set(_OWN_FILES) - set(written):
            (target / name).unlink(missing_ok=True)
        return
    present = [name for name in written if (target / name).exists()]
    if present and not overwrite:
        raise UserError(
            f"{target} holds {listed(present)} already; choose another folder, or pass "
            "overwrite=True to replace them."
        )


def _collect(
    model: nn.Module, description: Description, pattern: dict[str, int]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """Tensors by file, and the ranks that are saved."""
    if "peft" in description.trained:
        return {}, pattern
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
    ranked = _ranked_kinds(model, description, pattern)
    for path, module in model.named_modules():
        if not (isinstance(module, loralib.Linear | loralib.SVDLinear) and module.has_adapter):
            continue
        key = f"{path}.lora_E"
        if isinstance(module, ranked):
            kept = _kept_triplets(module, pattern.pop(key, module.r))
            factors = {"lora_A": module.lora_A[kept], "lora_B": module.lora_B[:, kept]}
            if isinstance(module, loralib.SVDLinear):
                factors["lora_E"] = module.lora_E[kept]
        elif module.is_anchored:
            factors = {"lora_A": module.lora_A, "lora_B": module.lora_B}
        else:
            continue
        if module.is_anchored:
            factors = with_anchor(module, {n: tensor.detach() for n, tensor in factors.items()})
        if isinstance(module, ranked):
            ranks[key] = len(factors["lora_A"])
        for name, tensor in factors.items():
            adapter.pop(f"{path}.{name}", None)
            if len(factors["lora_A"]):
                adapter[f"{path}.{name}"] = tensor.detach()
    # A matrix of rank 0 may be absent: loading leaves a plain linear layer in its place.
    unknown = [key for key, rank in pattern.items() if rank]
    if unknown:
        raise UserError(
            f"The rank pattern names {listed(unknown)}, and the model has no such matrix."
        )
    if description.lora is not None and ranked:
        # A matrix that the model no longer carries, because it was loaded with rank 0.
        every = (f"{path}.lora_E" for path in description.lora.targets)
        ranks = {key: ranks.get(key, 0) for key in every}
    return {ADAPTER_FILE: adapter, HEAD_FILE: head}, ranks


def _ranked_kinds(
    model: nn.Module, description: Description, pattern: Mapping[str, int]
) -> tuple[type[RankedLayer], ...]:
    """Kinds of layers whose matrices have a rank each: plain LoRA's only where it was pruned."""
    if description.lora is None or description.lora.lora_type == "svd":
        return (loralib.SVDLinear,)
    layers = [m for m in model.modules() if isinstance(m, loralib.Linear) and m.has_adapter]
    # An anchored update (PiSSA) is stored, and described, with twice its rank.
    ranks = sum(2 * layer.r if layer.is_anchored else layer.r for layer in layers)
    whole = description.lora.init_rank * len(description.lora.targets)
    return (loralib.Linear,) if pattern or ranks < whole else ()


def _kept_triplets(layer: RankedLayer, rank: int) -> Tensor:
    """Positions of the triplets to save: ``rank`` of the largest, and every one not zero."""
    if isinstance(layer, loralib.SVDLinear):
        values = layer.lora_E.detach().abs().flatten()
    else:
        values = layer.lora_A.detach().norm(dim=1) * layer.lora_B.detach().norm(dim=0)
    count = min(layer.r, max(rank, int((values != 0).sum())))
    order = torch.argsort(values, descending=True, stable=True)
    return order[:count].sort().values


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

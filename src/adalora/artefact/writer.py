"""The one folder a run leaves: trained tensors, tokenizer, and a description that is written last.

``adapter.safetensors`` holds what trained outside the head; of an SVD matrix only the triplets
that were kept, so a matrix of rank 0 leaves nothing. ``head.safetensors`` is pooler and classifier.
Full fine-tuning leaves ``config.json`` and ``model.safetensors`` instead. The folder may hold other
files (the Trainer keeps its checkpoints there), so it is never replaced as a whole: each file is
written aside and renamed, and ``adalora.json`` names them all. Without it there is no artefact.
``README.md``, the model card, is for people and is not among the files that are checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.adapters.head import is_head
from adalora.adapters.kinds import LORA_KINDS, lora_layers
from adalora.adapters.peft_method import PEFT_FILES, write_peft_adapter
from adalora.artefact.base_encoder import BaseEncoder
from adalora.artefact.description import MANIFEST, Description, Origin, brings_code
from adalora.artefact.model_card import CARD_FILE, is_ours, model_card
from adalora.artefact.stored import ADAPTER_FILE, HEAD_FILE, MODEL_FILE
from adalora.errors import UserError
from adalora.storage.atomic import finish, lock_or_warn, move_files
from adalora.storage.files import file_checksum, listed, write_json, write_tensors
from loralib.base import LinearAdapter

_ASIDE = ".artefact-"
# What an artefact of another method would leave behind.
_OWN_FILES = (ADAPTER_FILE, HEAD_FILE, MODEL_FILE, "config.json", *PEFT_FILES)


def save_artefact(
    folder: str | Path,
    model: nn.Module,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    description: Description,
    rank_pattern: Mapping[str, int] | None = None,
    metrics: Mapping[str, Any] | None = None,
    lineage: Sequence[Origin] | None = None,
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
        tokenizer: saved with the tensors; None for none.
        description: from ``Description.of(model, ...)``.
        rank_pattern: ``<module>.lora_E`` -> triplets kept by the allocator; None or {} for all.
        metrics: kept in the description.
        lineage: what the model's adapters were read from (``WarmStart.origins``), the nearest
            first; None for that of the description.
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
    with sole_writer(target), _prepared(target) as aside:
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
            remote_code=description.remote_code or brings_code(tokenizer),
            rank_pattern=ranks,
            metrics=dict(metrics or {}),
            lineage=description.lineage if lineage is None else tuple(lineage),
            base_fingerprint=fingerprint,
            files={name: path.stat().st_size for name, path in written.items()},
            checksums={name: file_checksum(path) for name, path in written.items()},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_json(aside / MANIFEST, asdict(complete))
        names = list(written)
        if not (target / CARD_FILE).exists() or is_ours(target / CARD_FILE):
            (aside / CARD_FILE).write_text(model_card(complete), encoding="utf-8")
            names.append(CARD_FILE)
        _make_way(target, written, overwrite)
        _publish(aside, target, names)
    return complete


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the folder and hold it against other writers; what a killed one left aside is removed.

    The lock is the system's, on the folder itself, and ends with the process. Where the file system
    has no locks, two writers at once leave files that do not fit the checksums, which is found on
    loading.

    Raises:
        UserError: if it cannot be made, or another process is writing there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Windows opens no folders.
        descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made ({_reason(error)}); choose another."
        ) from error
    if descriptor is None:
        yield
        return
    try:
        try:
            locked = lock_or_warn(descriptor, folder)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is saving to {folder} at this moment; choose another folder, or "
                "wait for it."
            ) from error
        for left in folder.glob(f"{_ASIDE}*") if locked else ():
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _prepared(folder: Path) -> Iterator[Path]:
    """A folder inside ``folder`` to write to first; it is gone afterwards, whatever happens."""
    try:
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as name:
            yield Path(name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The artefact could not be written to {folder} ({_reason(error)}); what was there is "
            "as it was. Make room, or choose another folder."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.errno != errno.ENOSPC else "the disk is full"
    return " ".join(str(error).split())


def _publish(aside: Path, folder: Path, files: Sequence[str]) -> None:
    """Move ``files`` and then the manifest from ``aside`` to ``folder``, on the disk for good.

    Until the manifest is in its place, the folder holds no artefact.
    """
    finish(aside / name for name in (*files, MANIFEST))
    try:
        move_files(aside, folder, files, last=MANIFEST)
    except OSError as error:
        raise UserError(
            f"Files in {folder} could not be replaced ({_reason(error)}), so it holds no complete "
            "artefact now; save to another folder."
        ) from error


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
    layers = lora_layers(model)
    ranked = _states_ranks(layers.values(), description, pattern)
    ranks: dict[str, int] = {}
    for path, layer in layers.items():
        if not ranked and not layer.is_anchored:
            continue  # stored as it trains
        kept = _kept_triplets(layer, pattern.pop(f"{path}.lora_E", layer.r)) if ranked else None
        factors = layer.stored_factors(kept)
        rank = len(factors["lora_A"])
        if ranked:
            ranks[f"{path}.lora_E"] = rank
        for name, tensor in factors.items():
            adapter.pop(f"{path}.{name}", None)
            if rank:
                adapter[f"{path}.{name}"] = tensor
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


def _states_ranks(
    layers: Collection[LinearAdapter], description: Description, pattern: Mapping[str, int]
) -> bool:
    """Whether the matrices have a rank each: those of plain LoRA only where it was pruned."""
    if description.lora is None or LORA_KINDS[description.lora.lora_type].ranked:
        return True
    # An anchored update (PiSSA) is stored, and described, with twice its rank.
    ranks = sum(2 * layer.r if layer.is_anchored else layer.r for layer in layers)
    return bool(pattern) or ranks < description.lora.init_rank * len(description.lora.targets)


def _kept_triplets(layer: LinearAdapter, rank: int) -> Tensor:
    """Positions of the triplets to save: ``rank`` of the largest, and every one not zero."""
    values = layer.triplet_values()
    # Without triplets a matrix is its base's, but for factors that have none (DoRA's norms).
    least = int(None in layer.FACTORS.values())
    count = min(layer.r, max(rank, least, int((values != 0).sum())))
    order = torch.argsort(values, descending=True, stable=True)
    return order[:count].sort().values

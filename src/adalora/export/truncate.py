"""``adalora truncate``: a trained low-rank run with fewer ranks, allocated after its training.

Every matrix's update is taken apart into singular values, and one threshold over all matrices keeps
the largest: of all allocations of so many triplets, the one that changes the updates least in the
Frobenius norm. No example is looked at, and nothing is trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from adalora.adapters.kinds import lora_layers
from adalora.artefact.description import MANIFEST, read_description
from adalora.artefact.reader import load_artefact
from adalora.artefact.stored import find_artefact, read_artefact
from adalora.artefact.writer import save_artefact
from adalora.errors import UserError
from adalora.export.convert import quietly
from adalora.export.low_rank import LowRank, low_rank_updates
from adalora.export.peft_import import import_adapter
from adalora.export.peft_write import CONFIG_FILE
from adalora.export.verify import Agreement, measure, predictor, random_batches
from adalora.storage.atomic import complete_or_absent

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Truncation:
    """What was written, and what it lost."""

    target: Path  #: root folder of the run that was made
    before: int  #: triplets of the source, in the whole model
    rank_pattern: Mapping[str, int]  #: ``<module>.lora_E`` -> triplets kept
    kept: float  #: share of the squared Frobenius norm of all updates that is left, in [0, 1]
    agreement: Agreement  #: of what was written with what was meant, on random input


def truncate_run(
    source: str | Path,
    *,
    target_rank: int,
    output: str | Path,
    base_model: str | None = None,
    overwrite: bool = False,
) -> Truncation:
    """Write the run that is left of ``source`` with ``target_rank`` triplets per matrix, as a mean.

    Args:
        source: root folder of a run or an artefact's folder, trained by LoRA or AdaLoRA; or a LoRA
            or AdaLoRA adapter folder of PEFT.
        target_rank: mean over the matrices that were adapted, those of rank 0 included.
        output: root folder of the run to make, with ``model/`` in it.
        base_model: hub id or folder of the base, if it is elsewhere than it was.
        overwrite: replace an earlier one that is there, once the new one is complete.

    Raises:
        UserError: if the source cannot be read or has no low-rank update, it has no more triplets
            than asked for, or the target is there or cannot be written. Nothing is left behind.
    """
    folder, target = Path(source).expanduser(), Path(output)

    def replaceable(path: Path) -> bool:
        return path.is_dir() and {entry.name for entry in path.iterdir()} <= {"model"}

    with (
        quietly(),
        tempfile.TemporaryDirectory() as imported,
        complete_or_absent(
            target, overwrite=overwrite, replaceable=replaceable, protected=[folder]
        ) as new,
    ):
        labels = None
        if (folder / MANIFEST).is_file() or not (folder / CONFIG_FILE).is_file():
            folder = find_artefact(folder)
            labels = read_description(folder).labels
        if (folder / CONFIG_FILE).is_file():
            run = Path(imported) / "run"
            import_adapter(folder, output=run, base_model=base_model, labels=labels)
            folder = find_artefact(run)
        done = _truncate(folder, new / "model", target_rank, base_model)
    return replace(done, target=target)


def _truncate(folder: Path, new: Path, target_rank: int, base_model: str | None) -> Truncation:
    artefact = load_artefact(folder, base_model=base_model)
    description, updates = artefact.description, low_rank_updates(artefact)
    if any(update.magnitude is not None for update in updates.values()):
        raise UserError(
            f"{folder} was trained by {description.method}, whose update is no product of low rank "
            "alone; LoRA and AdaLoRA can be truncated."
        )
    parts = {path: triplets_of(update) for path, update in updates.items()}
    before = sum(int((values > 0).sum()) for _, values, _ in parts.values())
    budget = target_rank * len(parts)
    if target_rank < 1 or budget >= before:
        raise UserError(
            f"{folder} has {before} triplets in {len(parts)} matrices, and --target_rank "
            f"{target_rank} asks for {budget}: give a mean rank of at least 1 that leaves fewer."
        )
    everything = torch.cat([values for _, values, _ in parts.values()])
    keeps = torch.zeros_like(everything, dtype=torch.bool)
    keeps[torch.sort(everything, descending=True, stable=True).indices[:budget]] = True
    counts = keeps.split([len(values) for _, values, _ in parts.values()])
    pattern = {path: int(kept.sum()) for path, kept in zip(parts, counts, strict=True)}

    for path, layer in lora_layers(artefact.model).items():
        up, values, down = parts[path]
        values = values.masked_fill(torch.arange(len(values)) >= pattern[path], 0.0)
        # A negative lora_alpha makes the scale negative; the product before it takes the sign.
        sign = -1.0 if updates[path].scale < 0 else 1.0
        like = layer.lora_A
        layer.set_product(
            *((sign * up).to(like), (values / abs(updates[path].scale)).to(like), down.to(like))
        )
    ranks = {f"{path}.lora_E": rank for path, rank in pattern.items()}
    save_artefact(
        new,
        artefact.model,
        tokenizer=artefact.tokenizer,
        description=replace(
            description, method=f"{description.method}, truncated to a mean rank of {target_rank}"
        ),
        rank_pattern=ranks,
        lineage=read_artefact(folder).origins(),
        base_fingerprint=description.base_fingerprint,
    )
    written = load_artefact(new, base_model=base_model)
    agreement = measure(
        artefact.model,
        predictor(written.model),
        random_batches(artefact.model, max_length=description.max_seq_length),
        tolerance=_TOLERANCE,
        what="The truncated run",
    )
    squares = everything.square()
    kept = float(squares[keeps].sum() / squares.sum())
    return Truncation(new, before, ranks, kept, agreement)


def triplets_of(update: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """The singular value decomposition of an update, by way of its factors' QR decompositions.

    Returns:
        U [out, r], the singular values [r] in descending order, and Vᵀ [r, in], float64, r the
        update's rank. Values that only rounding leaves are 0.
    """
    up, down = update.up.double(), update.down.double()
    if update.values is not None:
        down = down * update.values.double()
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T * update.scale)
    if len(values):
        values = values.masked_fill(values < 1e-12 * values[0], 0.0)
    return q_up @ u, values, v @ q_down.T

"""Starting a run from adapters that exist: ``--lora_path`` and ``--adapter_path``.

Read are this project's artefacts, safetensors files, and the original's ``.bin`` state dictionaries
(by torch's restricted unpickler). Everything is read and checked against the model before the first
number of it changes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adalora.adapters.head import align_head, head_names
from adalora.adapters.kinds import LORA_KINDS, PARTS, lora_layers
from adalora.adapters.trainable import wrong_shapes
from adalora.artefact.base_encoder import BaseEncoder
from adalora.artefact.description import MANIFEST, Description, Origin, read_description
from adalora.artefact.stored import naming, read_artefact
from adalora.errors import UserError
from adalora.storage.files import file_checksum, listed, not_finite, read_bin, read_tensors
from loralib.base import LinearAdapter

_LOGGER = logging.getLogger(__name__)
# A count that the original stores with the factors.
_RANK_COUNT = "ranknum"
# Files of the original's folders.
_ADAPTER_BIN = "pytorch_adapter.bin"
_HEAD_BIN = "pytorch_model_head.bin"


@dataclass(frozen=True)
class WarmStart:
    """What a model was filled with."""

    filled: tuple[str, ...]  #: names of its parameters that were filled
    #: where they came from, the nearest first: the lineage of what the model becomes
    origins: tuple[Origin, ...]
    #: what the stored head was trained for, where the model's starts anew instead or lacks rows;
    #: None where it was taken whole
    untrained: str | None = None
    has_head: bool = False  #: whether a head was stored


@dataclass(frozen=True)
class StoredAdapters:
    """What was read, before there is a model: all tensors, and where they came from.

    ``description`` is that of an artefact; files have none.
    """

    source: Path
    tensors: dict[str, Tensor]
    origins: tuple[Origin, ...]
    description: Description | None = None

    @property
    def pruned_away(self) -> set[str]:
        """Paths of the matrices that pruning left nothing of."""
        ranks = {} if self.description is None else self.description.rank_pattern
        return {key.removesuffix(".lora_E") for key, rank in ranks.items() if rank == 0}


def load_lora(
    model: nn.Module,
    path: str | Path | StoredAdapters,
    *,
    labels: Sequence[str] | None = None,
    by_index: bool = False,
) -> WarmStart:
    """Fill the LoRA layers of ``model`` from a file or an artefact.

    A matrix stored with fewer triplets than the layer has (a pruned one) fills the leading ones;
    the singular values of the others become zero (with ``frd``, their columns of ``lora_B``), so
    the function is the stored one and the rest can be trained. A scale other than the model's is
    made up for in ``lora_E`` (``lora_B``). A head in the file is taken in the order of ``labels``
    (``align_head``; further classes get new rows), and the model's is left as it is with a warning
    where it is of other classes. Other parameters of the file that the model has are not read: the
    base is the one that was loaded.

    Args:
        model: with LoRA layers on it (``add_lora``).
        path: an artefact's folder (or a run's), a ``.safetensors`` file, or a ``.bin`` of the
            original; or what ``read_adapters`` has read of it.
        labels: the model's classes in their order; () for a number; None where they have no names,
            so that shapes alone decide.
        by_index: a head whose classes nobody named has the order of ``labels``, as those of GLUE's
            tasks have.

    Raises:
        UserError: if the file cannot be read, holds no LoRA parameters, they are missing, too
            many or too large for the model, hold NaN, or were trained on another base. The model
            is unchanged then.
    """
    start = path if isinstance(path, StoredAdapters) else read_adapters(path, "lora")
    layers = lora_layers(model)
    if not layers:
        raise UserError("The model has no LoRA layers to fill; call adalora.adapters.add_lora.")
    with naming(start.source):
        stored = _by_module(start.tensors)
        if not stored and not start.pruned_away:
            raise UserError("it holds no LoRA parameters (names ending in lora_A and so on).")
        _check_modules(set(stored) | start.pruned_away, set(layers))
        values = {
            f"{name}.{factor}": tensor
            for name, found in stored.items()
            for factor, tensor in _fit(name, layers[name], found, start.description).items()
        }
        _check_same_base(model, start)
    with torch.no_grad():
        for layer in layers.values():
            layer.factors()[layer.ZERO_FACTOR].zero_()
    return _fill(model, start, values, labels, by_index)


def load_bottleneck(
    model: nn.Module,
    path: str | Path | StoredAdapters,
    *,
    labels: Sequence[str] | None = None,
    by_index: bool = False,
) -> WarmStart:
    """Fill the bottleneck adapters of ``model``; the head too, as in ``load_lora``.

    Args:
        model: with bottleneck adapters on it (``add_bottleneck``).
        path: an artefact's folder, a folder of the original (``pytorch_adapter.bin``, and
            ``pytorch_model_head.bin`` if present), or one file; or what was read of it.
        labels: as in ``load_lora``.
        by_index: likewise.

    Raises:
        UserError: if the file cannot be read, or its adapters are not exactly the model's. The
            model is unchanged then.
    """
    start = path if isinstance(path, StoredAdapters) else read_adapters(path, "bottleneck")
    names = PARTS["bottleneck"].parameters(model)
    if not names:
        raise UserError(
            "The model has no bottleneck adapters; call adalora.adapters.add_bottleneck."
        )
    head = set(head_names(model))
    stored = {n: t for n, t in start.tensors.items() if ".adapter." in n and n not in head}
    with naming(start.source):
        _check_bottlenecks(stored, {name: model.get_parameter(name) for name in names})
        _check_same_base(model, start)
    return _fill(model, start, {name: stored[name] for name in names}, labels, by_index)


def stored_classes(path: str | Path) -> tuple[str, ...] | None:
    """The classes that an artefact's head was trained for, in its order.

    Returns:
        () for a number; None where nobody noted them, as in a file of tensors.
    """
    for folder in (Path(path), Path(path) / "model"):
        if (folder / MANIFEST).is_file():
            return read_description(folder).classes
    return None


def read_adapters(path: str | Path, wanted: str) -> StoredAdapters:
    """Read and verify what a run starts from, as far as it can be without a model.

    ``path`` is as ``load_lora`` and ``load_bottleneck`` take it, for ``wanted`` ``lora`` and
    ``bottleneck``. What is damaged, holds NaN or has no such part is refused.
    """
    source = Path(path)
    if any((folder / MANIFEST).is_file() for folder in (source, source / "model")):
        stored = read_artefact(source)
        if wanted not in stored.description.trained:
            raise UserError(
                f"The artefact in {source} holds no {wanted} adapters: it was trained by "
                f"{stored.description.method}."
            )
        return StoredAdapters(source, stored.tensors, stored.origins(), stored.description)
    files = [source]
    if source.is_dir():
        if wanted != "bottleneck" or not (source / _ADAPTER_BIN).is_file():
            expected = MANIFEST if wanted == "lora" else f"{MANIFEST} or {_ADAPTER_BIN}"
            raise UserError(f"The folder {source} holds no {expected}; name a file or an artefact.")
        files = [source / _ADAPTER_BIN, *source.glob(_HEAD_BIN)]
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= (read_tensors if file.suffix == ".safetensors" else read_bin)(file)
    if bad := not_finite(tensors.items()):
        raise UserError(f"{files[0]} holds NaN or infinity in {listed(bad)}; start from another.")
    # DistributedDataParallel puts ``module.`` before every name.
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    origin = Origin(path=str(files[0].resolve()), sha256=file_checksum(files[0]))
    return StoredAdapters(source, tensors, (origin,))


# ---- checking ----


def _check_same_base(model: nn.Module, start: StoredAdapters) -> None:
    """Refuse adapters of another base; one of another number type cannot be compared."""
    description = start.description
    if description is None or description.base_fingerprint is None:
        return
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype != description.dtype:
        _LOGGER.warning(
            "%s was trained on a base in %s and this one is in %s, so whether their weights are "
            "the same was not checked.",
            start.source,
            description.dtype,
            dtype,
        )
        return
    base = BaseEncoder.of(model)
    base.check(description, start.tensors, where="this model")


def _by_module(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Path -> name -> factor, as far as the names are those of any kind of factor."""
    factors = {_RANK_COUNT}.union(*(kind.layer.FACTORS for kind in LORA_KINDS.values()))
    stored: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        path, _, factor = name.rpartition(".")
        if factor in factors:
            stored[path][factor] = tensor
    return dict(stored)


def _check_modules(stored: set[str], adapted: set[str]) -> None:
    """Refuse LoRA of other matrices than the model's."""
    if extra := sorted(stored - adapted):
        raise UserError(
            f"it holds LoRA parameters of {listed(extra)}, which this model does not adapt; make "
            "lora_module and the base model those it was trained with."
        )
    if missing := sorted(adapted - stored):
        raise UserError(
            f"it holds no LoRA parameters of {listed(missing)}; make lora_module and the base "
            "model those it was trained with."
        )


def _check_bottlenecks(stored: dict[str, Tensor], own: dict[str, nn.Parameter]) -> None:
    """Refuse bottleneck adapters that are not exactly the model's."""
    missing = [name for name in own if name not in stored]
    extra = [name for name in stored if name not in own]
    if missing or extra:
        problem = f"lacks {listed(missing)}" if missing else f"holds {listed(extra)} besides"
        raise UserError(
            f"it does not fit the model's bottleneck adapters: it {problem}. Choose the "
            "adapter_type it was trained with."
        )
    if wrong := wrong_shapes(stored, own):
        raise UserError(f"it holds adapters of another shape: {listed(wrong)}.")


def _fit(
    path: str, layer: LinearAdapter, found: dict[str, Tensor], description: Description | None
) -> dict[str, Tensor]:
    """The factors as they go into ``layer``, its scale accounted for."""
    own = layer.factors()
    given = {name: tensor for name, tensor in found.items() if name != _RANK_COUNT}
    if set(given) != set(own):
        raise UserError(
            f"it holds {listed(sorted(given))} of {path}, and the model's layers need "
            f"{listed(sorted(own))}; choose the lora_type it was trained with."
        )
    rank = given["lora_A"].shape[0] if given["lora_A"].dim() else -1
    for name in sorted(own):
        expected, dim = list(own[name].shape), layer.FACTORS[name]
        fitting = [rank if axis == dim else size for axis, size in enumerate(expected)]
        if list(given[name].shape) != fitting or rank > layer.r:
            raise UserError(
                f"{path}.{name} has shape {list(given[name].shape)}, which does not fit the "
                f"model's {expected}; the rank stored must be at most lora_r."
            )
    # A file without a description does not say its ``lora_alpha``: the model's is taken. It says
    # the initial rank in ``ranknum``, or, where that is absent, by its shape.
    alpha, init_rank = float(layer.lora_alpha), float(max(rank, 1))
    if _RANK_COUNT in found:
        init_rank = float(found[_RANK_COUNT].reshape(-1)[0])
    if description is not None and description.lora is not None:
        alpha, init_rank = description.lora.lora_alpha, float(description.lora.init_rank)
    ratio = layer.scale_for(alpha, init_rank) / layer.scale
    if ratio != 1:
        given[layer.ZERO_FACTOR] = given[layer.ZERO_FACTOR] * ratio
    return given


# ---- filling ----


@torch.no_grad()
def _fill(
    model: nn.Module,
    start: StoredAdapters,
    values: dict[str, Tensor],
    labels: Sequence[str] | None,
    by_index: bool,
) -> WarmStart:
    """Copy ``values`` into the leading part of the parameters of their names, and fill the head."""
    own = set(head_names(model))
    stored = {name: tensor for name, tensor in start.tensors.items() if name in own}
    untrained = None
    if stored:
        described = start.description
        names = None if described is None else described.classes
        if names is None and by_index and labels is not None:
            names = tuple(labels)
        head = align_head(model, stored, names, labels, grow=True)
        values, untrained = values | head.tensors, head.reason
        if untrained is not None:
            message = "%s holds a head of %s; the model's head starts anew."
            _LOGGER.warning(message, start.source, untrained)
        elif head.new:
            untrained = f"all classes but {', '.join(head.new)}"
            message = "%s has no row for %s, which the model's head gets anew; the others are kept."
            _LOGGER.warning(message, start.source, ", ".join(head.new))
    for name, tensor in values.items():
        model.get_parameter(name)[tuple(slice(size) for size in tensor.shape)].copy_(tensor)
    return WarmStart(tuple(values), start.origins, untrained, bool(stored))

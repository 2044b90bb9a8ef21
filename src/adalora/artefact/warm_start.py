"""Starting a run from adapters that exist: ``--lora_path`` and ``--adapter_path``.

Read are this project's artefacts, safetensors files, and the original's ``.bin`` state dictionaries
(by torch's restricted unpickler).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import loralib
from adalora.adapters.freeze import adapter_names
from adalora.adapters.head import is_head
from adalora.adapters.initialise import update_scale
from adalora.artefact.base_encoder import BaseEncoder
from adalora.artefact.description import (
    MANIFEST,
    Description,
    Origin,
    read_description,
    record_origins,
)
from adalora.artefact.folder import check_files, find_artefact
from adalora.artefact.reader import origins_of
from adalora.artefact.rebuild import check_base, read_adapter
from adalora.errors import UserError
from adalora.storage.files import file_checksum, listed, not_finite, read_bin, read_tensors

__all__ = ["load_bottleneck", "load_lora"]

_LOGGER = logging.getLogger(__name__)
_FACTORS = ("lora_A", "lora_E", "lora_B", "lora_magnitude")
# Files of the original's folders.
_ADAPTER_BIN = "pytorch_adapter.bin"
_HEAD_BIN = "pytorch_model_head.bin"


def load_lora(model: nn.Module, path: str | Path) -> list[str]:
    """Fill the LoRA layers of ``model`` from a file or an artefact.

    A matrix stored with fewer triplets than the layer has (a pruned one) fills the leading ones;
    the singular values of the others become zero (with ``frd``, their columns of ``lora_B``), so
    the function is the stored one and the rest can be trained. A scale other than the model's is
    made up for in ``lora_E`` (``lora_B``). A head in the file is taken if all its shapes fit, and
    left as it is with a warning if they do not (another task). Other parameters of the file that
    the model has are not read: the base is the one that was loaded.

    Args:
        model: with LoRA layers on it (``add_lora``).
        path: an artefact's folder (or a run's), a ``.safetensors`` file, or a ``.bin`` of the
            original.

    Returns:
        Names of the parameters that were filled. Where they came from is noted on the model, for
        the lineage of what it becomes.

    Raises:
        UserError: if the file cannot be read, holds no LoRA parameters, they are missing, too
            many or too large for the model, hold NaN, or were trained on another base. The model
            is unchanged then.
    """
    source = Path(path)
    stored_as = _read(source, wanted="lora")
    description, tensors = stored_as.description, stored_as.tensors
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, loralib.Linear | loralib.SVDLinear) and module.has_adapter
    }
    if not layers:
        raise UserError("The model has no LoRA layers to fill; call adalora.adapters.add_lora.")
    stored = _by_module(tensors)
    if not stored and not (description is not None and description.rank_pattern):
        raise UserError(f"{source} holds no LoRA parameters (names ending in lora_A and so on).")
    pruned = set() if description is None else _pruned_away(description)
    _check_modules(stored, layers, pruned, source)
    plan = {
        name: _fit(name, layers[name], factors, description, source)
        for name, factors in stored.items()
    }
    _check_same_base(model, stored_as, source)
    filled: list[str] = []
    with torch.no_grad():
        for name, layer in layers.items():
            end = layer.lora_E if isinstance(layer, loralib.SVDLinear) else layer.lora_B
            end.zero_()
            for factor, tensor in plan.get(name, {}).items():
                parameter: Tensor = getattr(layer, factor)
                parameter[tuple(slice(size) for size in tensor.shape)].copy_(tensor)
                filled.append(f"{name}.{factor}")
    record_origins(model, *stored_as.origins)
    return filled + _load_head(model, tensors, source)


def load_bottleneck(model: nn.Module, path: str | Path) -> list[str]:
    """Fill the bottleneck adapters of ``model``; the head too, as in ``load_lora``.

    Args:
        model: with bottleneck adapters on it (``add_bottleneck``).
        path: an artefact's folder, a folder of the original (``pytorch_adapter.bin``, and
            ``pytorch_model_head.bin`` if present), or one file.

    Returns:
        Names of the parameters that were filled.

    Raises:
        UserError: if the file cannot be read, or its adapters are not exactly the model's. The
            model is unchanged then.
    """
    source = Path(path)
    stored_as = _read(source, wanted="bottleneck")
    tensors = stored_as.tensors
    names = adapter_names(model, "bottleneck")
    if not names:
        raise UserError(
            "The model has no bottleneck adapters; call adalora.adapters.add_bottleneck."
        )
    stored = {n: t for n, t in tensors.items() if ".adapter." in n and not is_head(model, n)}
    missing = [name for name in names if name not in stored]
    extra = [name for name in stored if name not in names]
    if missing or extra:
        problem = f"lacks {listed(missing)}" if missing else f"holds {listed(extra)} besides"
        raise UserError(
            f"{source} does not fit the model's bottleneck adapters: it {problem}. Choose the "
            "adapter_type it was trained with."
        )
    parameters = dict(model.named_parameters())
    wrong = [
        f"{name} ({list(stored[name].shape)}, expected {list(parameters[name].shape)})"
        for name in names
        if stored[name].shape != parameters[name].shape
    ]
    if wrong:
        raise UserError(f"{source} holds adapters of another shape: {listed(wrong)}.")
    _check_same_base(model, stored_as, source)
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(stored[name])
    record_origins(model, *stored_as.origins)
    return names + _load_head(model, tensors, source)


class _Stored(NamedTuple):
    """What was read: the description (of an artefact alone), all tensors, and their lineage."""

    description: Description | None
    tensors: dict[str, Tensor]
    origins: tuple[Origin, ...]


def _read(source: Path, *, wanted: str) -> _Stored:
    if not source.is_dir():
        read = read_tensors if source.suffix == ".safetensors" else read_bin
        return _of_files(read(source), source)
    if (source / MANIFEST).is_file() or (source / "model" / MANIFEST).is_file():
        folder = find_artefact(source)
        description = read_description(folder)
        if wanted not in description.trained:
            raise UserError(
                f"The artefact in {source} holds no {wanted} adapters: it was trained by "
                f"{description.method}."
            )
        check_files(folder, description)
        return _Stored(
            description, read_adapter(folder, description), origins_of(folder, description)
        )
    if wanted == "bottleneck" and (source / _ADAPTER_BIN).is_file():
        head = source / _HEAD_BIN
        found = read_bin(source / _ADAPTER_BIN) | (read_bin(head) if head.is_file() else {})
        return _of_files(found, source / _ADAPTER_BIN)
    expected = MANIFEST if wanted == "lora" else f"{MANIFEST} or {_ADAPTER_BIN}"
    raise UserError(f"The folder {source} holds no {expected}; name a file or an artefact.")


def _of_files(tensors: dict[str, Tensor], file: Path) -> _Stored:
    if bad := not_finite(tensors.items()):
        raise UserError(f"{file} holds NaN or infinity in {listed(bad)}; start from another.")
    origin = Origin(path=str(file.resolve()), sha256=file_checksum(file))
    return _Stored(None, _without_wrapper(tensors), (origin,))


def _check_same_base(model: nn.Module, stored: _Stored, source: Path) -> None:
    """Refuse adapters of another base; one of another number type cannot be compared."""
    if stored.description is None or stored.description.base_fingerprint is None:
        return
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    if dtype != stored.description.dtype:
        _LOGGER.warning(
            "%s was trained on a base in %s and this one is in %s, so whether their weights are "
            "the same was not checked.",
            source,
            stored.description.dtype,
            dtype,
        )
        return
    base = BaseEncoder.of(model)
    check_base(base, stored.description, stored.tensors, source=source, where="this model")


def _without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the ``module.`` that DistributedDataParallel puts before them."""
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _by_module(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    stored: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        path, _, factor = name.rpartition(".")
        if factor in _FACTORS or factor == "ranknum":
            stored[path][factor] = tensor
    return dict(stored)


def _pruned_away(description: Description) -> set[str]:
    return {
        key.removesuffix(".lora_E") for key, rank in description.rank_pattern.items() if rank == 0
    }


def _check_modules(
    stored: dict[str, dict[str, Tensor]],
    layers: dict[str, loralib.Linear | loralib.SVDLinear],
    pruned: set[str],
    source: Path,
) -> None:
    extra = sorted((set(stored) | pruned) - set(layers))
    if extra:
        raise UserError(
            f"{source} holds LoRA parameters of {listed(extra)}, which this model does not adapt; "
            "make lora_module and the base model those it was trained with."
        )
    missing = [name for name in layers if name not in stored and name not in pruned]
    if missing:
        raise UserError(
            f"{source} holds no LoRA parameters of {listed(missing)}; make lora_module and the "
            "base model those it was trained with."
        )


def _fit(
    name: str,
    layer: loralib.Linear | loralib.SVDLinear,
    factors: dict[str, Tensor],
    description: Description | None,
    source: Path,
) -> dict[str, Tensor]:
    """The factors as they go into ``layer``, its scale accounted for."""
    svd = isinstance(layer, loralib.SVDLinear)
    needed = set(_FACTORS) & set(layer._parameters)
    found = set(factors) - {"ranknum"}
    if found != needed:
        raise UserError(
            f"{source} holds {listed(sorted(found))} of {name}, and the model's "
            f"layers need {listed(sorted(needed))}; choose the lora_type it was trained with."
        )
    rank = factors["lora_A"].shape[0] if factors["lora_A"].dim() else -1
    shapes = {
        "lora_A": (rank, layer.in_features),
        "lora_E": (rank, 1),
        "lora_B": (layer.out_features, rank),
        "lora_magnitude": (layer.out_features,),
    }
    for factor in sorted(needed):
        if tuple(factors[factor].shape) != shapes[factor] or rank > layer.r:
            expected = list(getattr(layer, factor).shape)
            raise UserError(
                f"{name}.{factor} in {source} has shape {list(factors[factor].shape)}, which does "
                f"not fit the model's {expected}; the rank stored must be at most lora_r."
            )
    result = {factor: factors[factor] for factor in needed}
    end = "lora_E" if svd else "lora_B"
    ratio = _stored_scale(layer, factors, description, rank) / update_scale(layer)
    if ratio != 1:
        result[end] = result[end] * ratio
    return result


def _stored_scale(
    layer: loralib.Linear | loralib.SVDLinear,
    factors: dict[str, Tensor],
    description: Description | None,
    rank: int,
) -> float:
    """The scale the stored factors were trained with.

    A file without a description does not say its ``lora_alpha``: the model's is taken. It says the
    initial rank in ``ranknum``, or, where that is absent, by its shape.
    """
    alpha = float(layer.lora_alpha)
    init_rank = float(max(rank, 1))
    if "ranknum" in factors:
        init_rank = float(factors["ranknum"].reshape(-1)[0])
    if description is not None and description.lora is not None:
        alpha, init_rank = description.lora.lora_alpha, float(description.lora.init_rank)
    if isinstance(layer, loralib.SVDLinear):
        return (alpha if alpha > 0 else init_rank) / (init_rank + 1e-5)
    return alpha / init_rank


def _load_head(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> list[str]:
    parameters = {n: p for n, p in model.named_parameters() if is_head(model, n)}
    stored = {name: tensor for name, tensor in tensors.items() if name in parameters}
    if not stored:
        return []
    wrong = [name for name, tensor in stored.items() if tensor.shape != parameters[name].shape]
    if wrong:
        _LOGGER.warning(
            "%s holds a head of another shape (%s), of another task it seems; the model's head "
            "starts anew.",
            source,
            listed(wrong),
        )
        return []
    with torch.no_grad():
        for name, tensor in stored.items():
            parameters[name].copy_(tensor)
    return list(stored)

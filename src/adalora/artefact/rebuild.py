"""From a description and tensors to a model: adapters on the base, and values in them.

Sizes in a description are believed only where the stored tensors have them, so that no number in a
file can make the program allocate more than the file itself holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

import loralib
from adalora.adapters.bottleneck import AdapterType, add_bottleneck
from adalora.adapters.freeze import Method, adapter_names, freeze_base
from adalora.adapters.head import is_head
from adalora.adapters.lora import LORA_LAYERS, replace_module
from adalora.adapters.trainable import copy_exactly
from adalora.artefact.base_encoder import BaseEncoder, set_tensor
from adalora.artefact.description import MANIFEST, Description, LoRASettings
from adalora.artefact.peft_adapter import PEFT_FILES
from adalora.errors import UserError
from adalora.storage.files import listed, not_finite, read_tensors

__all__ = [
    "ADAPTER_FILE",
    "HEAD_FILE",
    "MODEL_FILE",
    "check_base",
    "check_outputs",
    "check_whole",
    "read_adapter",
    "restore",
    "shapes",
]

ADAPTER_FILE = "adapter.safetensors"
HEAD_FILE = "head.safetensors"
MODEL_FILE = "model.safetensors"


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a safetensors file, from its header alone.

    Raises:
        UserError: as ``read_tensors``.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        # Reading it says what is wrong with it.
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}


def check_outputs(source: Path, description: Description) -> None:
    """Refuse a description that lacks a needed file, or whose outputs the stored head has not.

    Raises:
        UserError: saying which.
    """
    # Which files are needed, and which of them holds the head.
    needed, file = (ADAPTER_FILE, HEAD_FILE), HEAD_FILE
    if "full" in description.trained:
        needed, file = (MODEL_FILE, "config.json"), MODEL_FILE
    elif "peft" in description.trained:
        needed, file = PEFT_FILES, PEFT_FILES[0]
    for name in needed:
        if name not in description.files:
            raise UserError(f"{source / MANIFEST} does not list {name}; the artefact is damaged.")
    rows = {shape[0] for shape in shapes(source / file).values() if shape}
    if description.num_labels not in rows:
        raise UserError(
            f"{source / MANIFEST} says num_labels {description.num_labels}, and no tensor of "
            f"{file} has as many rows."
        )


def read_adapter(source: Path, description: Description) -> dict[str, Tensor]:
    """The tensors of adapter and head, finite and of the ranks and sizes described.

    Raises:
        UserError: if one is not, or a file cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in (ADAPTER_FILE, HEAD_FILE):
        found = read_tensors(source / file)
        if bad := not_finite(found.items()):
            raise UserError(
                f"{source / file} holds NaN or infinity in {listed(bad)}, so it answers nothing; "
                "train again."
            )
        tensors |= found
    if description.lora is not None:
        for path in description.lora.targets:
            rank = _rank(description.lora, description.rank_pattern, path)
            factor = tensors.get(f"{path}.lora_A")
            if rank and (factor is None or factor.shape[:1] != (rank,)):
                have = "none" if factor is None else f"one of shape {list(factor.shape)}"
                raise UserError(
                    f"{source / MANIFEST} says rank {rank} of {path}, and {ADAPTER_FILE} holds "
                    f"{have}."
                )
    sizes = {t.shape[0] for n, t in tensors.items() if n.endswith("adapter.adapter_A.weight")}
    if description.adapter_size is not None and sizes != {description.adapter_size}:
        raise UserError(
            f"{source / MANIFEST} says adapter_size {description.adapter_size}, and "
            f"{ADAPTER_FILE} holds {', '.join(map(str, sorted(sizes))) or 'none'}."
        )
    return tensors


def _rank(settings: LoRASettings, rank_pattern: Mapping[str, int], path: str) -> int:
    return rank_pattern.get(f"{path}.lora_E", settings.init_rank)


def check_base(
    base: BaseEncoder,
    description: Description,
    tensors: Mapping[str, Tensor],
    *,
    source: Path,
    where: str,
) -> None:
    """Refuse a base whose weights are not those that the artefact was trained on.

    Artefacts of before the fingerprint have none, and pass.

    Raises:
        UserError: naming both fingerprints.
    """
    if description.base_fingerprint is None:
        return
    # Only BitFit's artefacts bring parameters of the encoder; any other that does is refused later.
    found = base.fingerprint(without=tensors if "bitfit" in description.trained else ())
    if found != description.base_fingerprint:
        raise UserError(
            f"{source} was trained on another base: {description.base_model} with the fingerprint "
            f"{description.base_fingerprint} ({description.dtype}), and {where} has {found}; its "
            "adapters fit the first alone."
        )


def check_whole(model: PreTrainedModel, source: Path) -> None:
    """Refuse a fully fine-tuned model of which a tensor is missing, too many or of another shape.

    Raises:
        UserError: naming it.
    """
    stored = shapes(source / MODEL_FILE)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [name for name in (*needed, *stored) if stored.get(name) != needed.get(name)]
    if wrong:
        raise UserError(
            f"{source / MODEL_FILE} does not fit its config.json: {listed(wrong)} is missing, "
            "superfluous or of another shape."
        )
    if bad := not_finite(model.state_dict().items()):
        raise UserError(f"{source / MODEL_FILE} holds NaN or infinity in {listed(bad)}.")


def restore(
    model: PreTrainedModel, tensors: dict[str, Tensor], description: Description, *, source: Path
) -> None:
    """Put the adapters on the base and fill them and the head.

    Parameters of the encoder that the artefact holds itself (BitFit's biases) are replaced, never
    written to: the encoder's own may be shared.

    Raises:
        UserError: if the tensors are not exactly those that the description asks for.
    """
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
    added = {*adapter_names(model, "lora"), *adapter_names(model, "bottleneck")}
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad and name not in added and not is_head(model, name):
            parameter.requires_grad_(False)
            set_tensor(model, name, nn.Parameter(parameter.detach().clone()))
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
        largest = min(linear.in_features, linear.out_features)
        if settings.init_rank > largest:
            raise UserError(
                f"init_rank {settings.init_rank} is above the largest rank of {path}, which is "
                f"{largest}; the artefact is damaged, or of another base."
            )
        rank = _rank(settings, rank_pattern, path)
        if rank == 0:
            continue
        layer = layer_class.from_linear(
            linear, r=rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout
        )
        # The scale divides by the initial rank, also after pruning.
        if isinstance(layer, loralib.SVDLinear):
            layer.ranknum.data.fill_(settings.init_rank)
            if settings.lora_alpha <= 0:
                layer.scaling = float(settings.init_rank)
        else:
            layer.scaling = settings.lora_alpha / settings.init_rank
        replace_module(model, path, layer)

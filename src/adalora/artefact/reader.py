"""From an artefact to a model: read all and verify it, have the base, build.

``read_artefact`` has verified every file before a base is loaded; the base is compared with its
fingerprint before anything is put on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from adalora.adapters.bottleneck import AdapterType, add_bottleneck
from adalora.adapters.freeze import freeze_base
from adalora.adapters.head import head_names, is_head
from adalora.adapters.kinds import LORA_KINDS, Method, added_names, lora_layers
from adalora.adapters.lora import replace_module
from adalora.adapters.peft_method import load_peft_adapter
from adalora.adapters.targets import check_replaceable
from adalora.adapters.trainable import copy_exactly
from adalora.artefact.base_encoder import BaseEncoder, set_tensor
from adalora.artefact.description import Description, LoRASettings
from adalora.artefact.stored import MODEL_FILE, StoredArtefact, naming, rank_of, read_artefact
from adalora.errors import UserError
from adalora.pretrained.loading import load_classifier, load_tokenizer
from adalora.storage.files import listed, not_finite


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
    sibling: Artefact | None = None,
    trust_remote_code: bool = False,
) -> Artefact:
    """Rebuild the model that ``save_artefact`` wrote.

    Args:
        folder: holds the artefact, or is the root of a run.
        device: where the model goes; not used with ``sibling``.
        base_model: hub name or folder of the base, if it is elsewhere than it was.
        sibling: an artefact loaded before; the new model shares the tensors of its base, and its
            tokenizer if that is the same.
        trust_remote_code: run the code that comes with the base, where the artefact says that it
            needs some.

    Raises:
        UserError: if the artefact is absent, incomplete or damaged, the base is another one, or it
            needs code that is not trusted.
    """
    stored = read_artefact(folder)
    description, base = stored.description, None
    if description.remote_code and not trust_remote_code:
        raise UserError(
            f"{stored.folder} was trained on {base_model or description.base_model}, which comes "
            f"with code of its own (revision {description.revision or 'main'}): if you trust its "
            "author, allow it with trust_remote_code=True in adalora.load, or --trust_remote_code "
            "in 'adalora predict' and 'adalora eval'; other commands do not run it."
        )
    if sibling is not None:
        _check_shareable(description, stored.folder)
    if sibling is not None and sibling.base is not None:
        base = sibling.base
        with naming(stored.folder):
            _check_type(str(base.config.model_type), description, "the base in memory")
        model = base.classifier(description)
    elif "full" in description.trained:
        model = _load_base(str(stored.folder), description, "main")
        with naming(stored.folder):
            _check_whole(model, stored.sizes)
    else:
        model = _load_base(base_model, description)
        nn.Module.to(model, device)
    if "peft" in description.trained:
        model = load_peft_adapter(model, stored.folder)
    elif "full" not in description.trained:
        base = base or BaseEncoder.of(model)
        with naming(stored.folder):
            where = base_model or description.base_model
            base.check(description, stored.tensors, where=where)
            _restore(model, description, stored.tensors)
    model.eval()
    nn.Module.to(model, device if base is None else model.device)
    tokenizer = _tokenizer(stored, sibling)
    return Artefact(model=model, tokenizer=tokenizer, description=description, base=base)


def _check_shareable(description: Description, folder: Path) -> None:
    for part, what in {"full": "was fine-tuned whole", "peft": "was trained by PEFT"}.items():
        if part in description.trained:
            raise UserError(
                f"The model in {folder} {what}, so it cannot share a base with others; load it by "
                "itself."
            )


def _load_base(
    name: str | None, description: Description, revision: str | None = None
) -> PreTrainedModel:
    """The model ``name``, or else the one described, with a head for the outputs described."""
    if name is None:
        name, revision = description.base_model, description.revision
    model = load_classifier(
        name,
        num_labels=description.num_labels,
        labels=description.labels,
        is_regression=description.is_regression,
        task_name=description.task,
        revision=revision or "main",
        cls_dropout=description.cls_dropout,
        trust_remote_code=description.remote_code,
        dtype=description.torch_dtype,
        position_query_bypass=description.position_query_bypass,
        head_follows=True,
    )
    _check_type(str(model.config.model_type), description, name)
    return model


def _check_type(found: str, description: Description, name: str) -> None:
    if found != description.model_type:
        raise UserError(
            f"The artefact was trained on a {description.model_type} model, and {name} is a "
            f"{found} model."
        )


def _check_whole(model: PreTrainedModel, found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a whole model if a tensor is missing, too many, not finite or of another shape."""
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    wrong = [name for name in (*needed, *found) if found.get(name) != needed.get(name)]
    if wrong:
        raise UserError(
            f"{MODEL_FILE} does not fit its config.json: {listed(wrong)} is missing, superfluous "
            "or of another shape."
        )
    if bad := not_finite(model.state_dict().items()):
        raise UserError(f"{MODEL_FILE} holds NaN or infinity in {listed(bad)}.")


def _tokenizer(stored: StoredArtefact, sibling: Artefact | None) -> PreTrainedTokenizerBase | None:
    """The artefact's own, the very one of ``sibling`` if its files are the same."""
    own = _tokenizer_files(stored.description)
    if not own:
        return None
    if sibling is not None and own == _tokenizer_files(sibling.description):
        return sibling.tokenizer
    return load_tokenizer(str(stored.folder), trust_remote_code=stored.description.remote_code)


def _tokenizer_files(description: Description) -> dict[str, str | None]:
    """Name -> checksum."""
    return {
        name: description.checksums.get(name) for name in description.files if "tokenizer" in name
    }


def _restore(model: PreTrainedModel, description: Description, tensors: dict[str, Tensor]) -> None:
    """Put the adapters on the base and fill them and the head.

    Parameters of the encoder that the artefact holds itself (BitFit's biases) are replaced, never
    written to: the encoder's own may be shared.
    """
    if description.lora is not None:
        _restore_lora(model, description.lora, description.rank_pattern)
    if description.adapter_type is not None:
        add_bottleneck(
            model,
            adapter_type=cast(AdapterType, description.adapter_type),
            adapter_size=description.adapter_size or 0,
        )
    # Of a run whose every matrix was pruned to rank 0, no LoRA is left.
    trained = [m for m in description.trained if m != "lora" or lora_layers(model)]
    if trained:
        freeze_base(model, train=cast("list[Method]", trained))
    else:
        head = set(head_names(model))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in head)
    added = added_names(model)
    for name, parameter in list(model.named_parameters()):
        if parameter.requires_grad and name not in added and not is_head(model, name):
            parameter.requires_grad_(False)
            set_tensor(model, name, nn.Parameter(parameter.detach().clone()))
    parameters: dict[str, nn.Parameter] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    copy_exactly(tensors, parameters, source="it")


def _restore_lora(
    model: nn.Module, settings: LoRASettings, rank_pattern: Mapping[str, int]
) -> None:
    """LoRA layers of the ranks kept, with the scale of the initial rank; none where it is 0."""
    layer_class = LORA_KINDS[settings.lora_type].layer
    for path in settings.targets:
        try:
            linear = model.get_submodule(path)
        except AttributeError as error:
            raise UserError(f"The base model has no module {path}; it is another one.") from error
        if not isinstance(linear, nn.Linear):
            raise UserError(f"{path} of the base model is no linear layer; it is another one.")
        check_replaceable(model, path, linear)
        largest = min(linear.in_features, linear.out_features)
        if settings.init_rank > largest:
            raise UserError(
                f"init_rank {settings.init_rank} is above the largest rank of {path}, which is "
                f"{largest}; the artefact is damaged, or of another base."
            )
        rank = rank_of(settings, rank_pattern, path)
        if rank == 0:
            continue
        layer = layer_class.from_linear(
            linear, r=rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout
        )
        layer.set_initial_rank(settings.init_rank)
        replace_module(model, path, layer)

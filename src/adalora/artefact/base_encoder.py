"""The frozen encoder under the adapters: its fingerprint, and more classifiers on the same tensors.

The fingerprint is the SHA-256 of one line for each parameter of the encoder, sorted by name,

    NAME DTYPE SHAPE SHA-256-OF-THE-VALUES

each ended by a newline. NAME is without the encoder's own prefix (``deberta.``), SHAPE reads
``768,768``, and the values are the bytes of the contiguous tensor, little-endian, in the number
type that the artefact's description states. Pooler, classifier and adapters are left out, and so is
what an artefact holds itself (the biases that BitFit trains).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from adalora.adapters.head import base_path, is_head, widen_head
from adalora.adapters.kinds import added_names, lora_layers
from adalora.artefact.description import Description
from adalora.errors import UserError
from adalora.pretrained import deberta
from adalora.pretrained.loading import describe_task
from adalora.pretrained.unpadded import unpad_encoder


@dataclass(frozen=True)
class BaseEncoder:
    """The tensors of one encoder, which any number of classifiers may share."""

    config: PreTrainedConfig  #: of the model that they were taken from
    #: name in the classifier -> parameter; of a merged layer, the base weight
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]  #: likewise; what the encoder looks up and nobody trains
    prefix: str  #: of the encoder inside the classifier, such as ``deberta``

    @classmethod
    def of(cls, model: nn.Module) -> BaseEncoder:
        """Take the encoder of ``model``, adapted or not; nothing is copied."""
        added = added_names(model)
        parameters: dict[str, Tensor] = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name not in added and not is_head(model, name)
        }
        for path, layer in lora_layers(model).items():
            if layer.merged:
                # The state dict of a merged layer holds its base.
                parameters[f"{path}.weight"] = layer.state_dict()["weight"]
        config: Any = getattr(model, "config", None)
        return cls(
            config=copy.deepcopy(config),
            parameters=parameters,
            buffers={
                n: b for n, b in model.named_buffers() if n not in added and not is_head(model, n)
            },
            prefix=base_path(model),
        )

    @cached_property
    def _lines(self) -> dict[str, str]:
        """Name -> line of the fingerprint."""
        return {name: self._line(name, tensor) for name, tensor in self.parameters.items()}

    def _line(self, name: str, tensor: Tensor) -> str:
        plain = tensor.detach().cpu().contiguous()
        dtype = str(plain.dtype).removeprefix("torch.")
        shape = ",".join(map(str, plain.shape))
        digest = hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().data)
        short = name.removeprefix(f"{self.prefix}.") if self.prefix else name
        return f"{short} {dtype} {shape} {digest.hexdigest()}\n"

    def fingerprint(self, without: Collection[str] = ()) -> str:
        """``sha256:`` and 64 digits, ``without`` the parameters that an artefact brings itself."""
        lines = sorted(line for name, line in self._lines.items() if name not in without)
        return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()

    def check(self, description: Description, held: Collection[str], *, where: str) -> None:
        """Refuse to be the base of an artefact that was trained on other weights.

        Artefacts of before the fingerprint have none, and pass. ``held`` are the names of its
        tensors; ``where`` says in the message what this encoder is.

        Raises:
            UserError: naming both fingerprints.
        """
        if description.base_fingerprint is None:
            return
        # Only BitFit's artefacts bring parameters of the encoder.
        found = self.fingerprint(without=held if "bitfit" in description.trained else ())
        if found != description.base_fingerprint:
            raise UserError(
                f"it was trained on another base: {description.base_model} with the fingerprint "
                f"{description.base_fingerprint} ({description.dtype}), and {where} has {found}; "
                "its adapters fit the first alone."
            )

    def classifier(self, description: Description) -> PreTrainedModel:
        """A classifier for the outputs described, on these tensors; its head holds no values."""
        config: Any = copy.deepcopy(self.config)
        config.num_labels = description.num_labels
        describe_task(
            config,
            labels=description.labels,
            is_regression=description.is_regression,
            task_name=description.task,
        )
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=description.remote_code
            )
        for name, tensor in (*self.parameters.items(), *self.buffers.items()):
            set_tensor(model, name, tensor)
        some = next(iter(self.parameters.values()))
        for name, parameter in list(model.named_parameters()):
            if parameter.is_meta:
                empty = torch.empty(parameter.shape, dtype=some.dtype, device=some.device)
                set_tensor(model, name, nn.Parameter(empty))
        widen_head(model)
        if config.model_type == "deberta-v2":
            deberta.patch(model, position_query_bypass=description.position_query_bypass)
        else:
            unpad_encoder(model)
        return model.eval()


def set_tensor(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put ``tensor`` itself in the place of the parameter or buffer ``name``."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)

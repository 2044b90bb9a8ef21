"""The kinds of trainable parts, each described here once; every other module asks.

**To add a kind of LoRA layer**: write a subclass of ``loralib.base.LinearAdapter`` (``FACTORS``,
its parameters, how they start, their product), and add one line to ``LORA_KINDS``. ``--lora_type``
and ``add_lora`` take it from there, and freezing, counting, artefacts, merging and starting from a
file ask the layer. It is exported as ``merged`` and ``onnx``; the formats that hold its factors are
named in ``exports``.

**To add another kind of part**: write the function that puts it on a model, and add one line to
``PARTS``: the names of its parameters, and the formats that hold it. An artefact of it needs its
settings in ``adalora.artefact.description``, and one line where ``adalora.artefact.reader``
restores the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

import loralib
from adalora.adapters.bottleneck import bottlenecks
from adalora.adapters.head import is_head
from adalora.adapters.peft_method import is_peft
from adalora.errors import UserError
from loralib.base import LinearAdapter


@dataclass(frozen=True)
class LoRAKind:
    """A kind of LoRA layer."""

    layer: type[LinearAdapter]  #: its class
    title: str  #: what a run with it is called
    exports: tuple[str, ...] = ()  #: formats, besides those of any LoRA, that hold its factors
    #: whether an artefact states the rank of each matrix even where none was pruned
    ranked: bool = False


#: By ``--lora_type``.
LORA_KINDS: dict[str, LoRAKind] = {
    "frd": LoRAKind(loralib.Linear, "LoRA", exports=("lora", "loralib")),
    "svd": LoRAKind(
        loralib.SVDLinear,
        "SVD-LoRA (fixed rank)",
        exports=("lora", "peft-adalora", "loralib"),
        ranked=True,
    ),
    "dora": LoRAKind(loralib.DoRALinear, "DoRA", exports=("lora",)),
}


def kind_of(layer: LinearAdapter) -> str:
    """The name in ``LORA_KINDS`` of the class of ``layer``; another class is refused."""
    for name, kind in LORA_KINDS.items():
        if type(layer) is kind.layer:
            return name
    raise UserError(
        f"{type(layer).__name__} is no kind of LoRA layer that is known here; there are "
        f"{', '.join(LORA_KINDS)}."
    )


def lora_layers(model: nn.Module) -> dict[str, LinearAdapter]:
    """Path -> layer of every linear layer with a LoRA adapter, in model order."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, LinearAdapter) and module.has_adapter
    }


def is_count(name: str) -> bool:
    """Whether a parameter is ``ranknum``, a count that the original stores as one."""
    return name.rpartition(".")[2] == "ranknum"


def _lora(model: nn.Module) -> list[str]:
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, loralib.LoRALayer)
        for name in module.factors()
    ]


def _bottleneck(model: nn.Module) -> list[str]:
    return [
        f"{path}.{name}"
        for path, adapter in bottlenecks(model).items()
        for name, _ in adapter.named_parameters()
    ]


def _biases(model: nn.Module) -> list[str]:
    """Every bias of the encoder; DeBERTa v1 calls two of them q_bias and v_bias."""
    others = set(_bottleneck(model))
    return [
        name
        for name, _ in model.named_parameters()
        if name.endswith("bias") and not is_head(model, name) and name not in others
    ]


def _everything(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if not is_count(name)]


def _of_peft(model: nn.Module) -> list[str]:
    named = model.named_parameters() if is_peft(model) else ()
    return [name for name, p in named if p.requires_grad and not is_head(model, name)]


@dataclass(frozen=True)
class Part:
    """What may train besides the head."""

    title: str  #: what it is called in a sentence
    #: names of its parameters in a model, in model order; none where it is absent
    parameters: Callable[[nn.Module], list[str]]
    #: formats that hold it; a kind of LoRA adds its own
    exports: tuple[str, ...] = ("merged", "onnx")
    added: bool = False  #: whether its parameters were added to those of the base


#: By the name that an artefact's ``trained`` has.
PARTS: dict[str, Part] = {
    "lora": Part("LoRA", _lora, added=True),
    "bottleneck": Part("bottleneck adapters", _bottleneck, exports=("onnx",), added=True),
    "bitfit": Part("the encoder's biases", _biases),
    "full": Part("the whole model", _everything),
    "peft": Part("an adapter of PEFT", _of_peft, exports=(), added=True),
}
Method = Literal["lora", "bottleneck", "bitfit", "full"]
#: Those that ``freeze_base`` knows; PEFT freezes its own models.
METHODS: tuple[Method, ...] = get_args(Method)


def added_names(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers that adapters added; what is left is base and head."""
    found = set(_bottleneck(model))
    for path, module in model.named_modules():
        if isinstance(module, loralib.LoRALayer):
            own = {*module._parameters, *module._buffers} - {"weight", "bias"}
            found |= {f"{path}.{name}" for name in own}
    return found

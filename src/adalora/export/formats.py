"""The table of export formats, and what the module of each one provides."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from adalora.errors import UserError
from adalora.shell import program

if TYPE_CHECKING:
    from torch import Tensor

    from adalora.artefact.reader import Artefact

    #: Inputs by name -> logits [batch, labels], float32 on the CPU.
    Predict = Callable[[dict[str, Tensor]], Tensor]


class Exporter(Protocol):
    """What the class of a format defines. The artefact's model is float32, in evaluation mode."""

    def write(self, artefact: Artefact, target: Path) -> None:
        """Write to ``target``, which does not exist and whose parent does."""

    def read(self, artefact: Artefact, target: Path) -> Predict:
        """Read ``target`` back as its users will; the artefact gives only the base's weights."""

    def usage(self, artefact: Artefact, target: Path) -> str:
        """How the result is used, for the end of the report."""


@dataclass(frozen=True)
class Format:
    """One line of the table.

    ``exporter_class`` is ``module:class``; which kinds of adapters a format holds is said by
    ``adalora.adapters.kinds``. ``tolerance`` is the difference of logits that needs no excuse
    (``verify.measure``); ``packages`` are needed beyond adalora's own, and ``extra`` of adalora
    installs them.
    """

    summary: str
    exporter_class: str
    is_folder: bool = True
    tolerance: float = 1e-5
    packages: tuple[str, ...] = ()
    extra: str = ""

    def exporter(self, name: str) -> Exporter:
        """What does the work; refused if a package that it needs is not installed."""
        missing = [package for package in self.packages if not is_installed(package)]
        if missing:
            raise UserError(
                f"--to {name} needs {' and '.join(missing)}, not installed here: type "
                f"{program('pip')} install 'adalora[{self.extra}]'."
            )
        module, _, class_name = self.exporter_class.partition(":")
        return cast(Exporter, getattr(importlib.import_module(module), class_name)())


FORMATS = {
    "merged": Format(
        "a plain model folder for transformers, without adapters", "adalora.export.plain:Merged"
    ),
    "lora": Format(
        "a LoRA folder for PEFT and the servers that read it",
        "adalora.export.peft_write:LoraFolder",
        packages=("peft",),
        extra="peft",
    ),
    "peft-adalora": Format(
        "an AdaLoRA folder for PEFT",
        "adalora.export.peft_write:AdaLoraFolder",
        packages=("peft",),
        extra="peft",
    ),
    "onnx": Format(
        "an ONNX graph for ONNX Runtime and others, any batch and length",
        "adalora.export.plain:Onnx",
        tolerance=1e-4,
        packages=("onnx", "onnxruntime", "onnxscript"),
        extra="export",
    ),
    "loralib": Format(
        "the original AdaLoRA code's state dictionary, one .bin file",
        "adalora.export.low_rank:StateDict",
        is_folder=False,
    ),
}


def is_installed(package: str) -> bool:
    """Whether a package is there to be imported."""
    return importlib.util.find_spec(package) is not None


def find_format(name: str) -> Format:
    """The format called ``name``; if there is none, the nearest is named."""
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name.lower(), FORMATS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? There are" if near else "choose from"
    raise UserError(f"Unknown format {name!r}; {hint} {', '.join(FORMATS)}.")

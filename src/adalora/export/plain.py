"""Whole models for programs that know nothing of adapters: ``merged`` and ``onnx``.

``merged`` is the folder that ``save_pretrained`` writes, for ``from_pretrained`` and pipelines.
``onnx`` is a graph for any batch and length, with tokenizer and labels in its folder: LoRA is
merged for the time of the export where that is exact, and stays in the graph where it is not
(``--position_query_bypass``); bottleneck adapters are part of the graph. DeBERTaV3 goes through
its padded, readable form: its relative positions follow the length at run time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from adalora.adapters.kinds import lora_layers
from adalora.adapters.merge import merged_model
from adalora.artefact.reader import Artefact
from adalora.export.verify import input_names, predictor
from adalora.pretrained.unpadded import is_unpadded

if TYPE_CHECKING:
    from adalora.export.formats import Predict


GRAPH_FILE = "model.onnx"
#: A protobuf file ends at 2 GiB; weights of larger models lie in a second file.
_LARGEST_SINGLE_FILE = 1_900_000_000


class Merged:
    """A plain model folder of transformers."""

    def write(self, artefact: Artefact, target: Path) -> None:
        """Configuration with the labels, weights, tokenizer."""
        merged_model(artefact.model).save_pretrained(target)
        if artefact.tokenizer is not None:
            artefact.tokenizer.save_pretrained(target)

    def read(self, artefact: Artefact, target: Path) -> Predict:
        """By transformers alone."""
        model = AutoModelForSequenceClassification.from_pretrained(target, dtype=torch.float32)
        return predictor(model)

    def usage(self, artefact: Artefact, target: Path) -> str:
        """A pipeline."""
        return f"""transformers.pipeline("text-classification", model="{target}")"""


class Onnx:
    """A graph for ONNX Runtime and others."""

    def write(self, artefact: Artefact, target: Path) -> None:
        """``model.onnx``, ``config.json`` with the labels, tokenizer."""
        model = artefact.model
        names = input_names(model)
        target.mkdir()
        # The sizes of the example are not kept: both dimensions are symbols.
        example = tuple(torch.ones(2, 7, dtype=torch.long) for _ in names)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        with (
            _traceable(model, merge=not artefact.description.position_query_bypass),
            torch.no_grad(),
        ):
            torch.onnx.export(
                _Logits(model, names).eval(),
                example,
                str(target / GRAPH_FILE),
                input_names=names,
                output_names=["logits"],
                dynamo=True,
                dynamic_shapes=(tuple({0: "batch", 1: "length"} for _ in names),),
                external_data=weights > _LARGEST_SINGLE_FILE,
                verbose=False,
            )
        model.config.save_pretrained(target)
        if artefact.tokenizer is not None:
            artefact.tokenizer.save_pretrained(target)

    def read(self, artefact: Artefact, target: Path) -> Predict:
        """By ONNX Runtime, on the CPU."""
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(
            str(target / GRAPH_FILE), providers=["CPUExecutionProvider"]
        )

        def predict(batch: dict[str, Tensor]) -> Tensor:
            inputs = {name: tensor.numpy() for name, tensor in batch.items()}
            return torch.from_numpy(session.run(["logits"], inputs)[0])

        return predict

    def usage(self, artefact: Artefact, target: Path) -> str:
        """The session and the names of its inputs."""
        inputs = ", ".join(input_names(artefact.model))
        return f'onnxruntime.InferenceSession("{target / GRAPH_FILE}"), inputs {inputs}: logits'


class _Logits(nn.Module):
    """The model as a function from tensors, in the order of ``names``, to its logits."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True))).logits
        return logits


@contextlib.contextmanager
def _traceable(model: PreTrainedModel, *, merge: bool) -> Iterator[None]:
    """``model`` in the form that is exported; afterwards it is as it was, bit for bit."""
    unpadded: list[Any] = [module for module in model.modules() if is_unpadded(module)]
    layers = [layer for layer in lora_layers(model).values() if not layer.merged]
    try:
        for encoder in unpadded:
            encoder.unpad = False
        for layer in layers if merge else ():
            layer.merge()
        yield
    finally:
        for encoder in unpadded:
            encoder.unpad = True
        for layer in layers:
            layer.unmerge()

"""A trained artefact as a function from texts to labels; several of them on one base in memory.

Each adapter has a model of its own whose encoder's tensors are the very same, so that switching is
choosing another model: nothing is written, and nothing of the base is there twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from adalora.adapters.merge import merge_adapters
from adalora.artefact.description import Description
from adalora.artefact.reader import Artefact, load_artefact
from adalora.artefact.stored import find_artefact
from adalora.data.understood import SAMPLE, share_cut
from adalora.errors import UserError
from adalora.glue.tasks import Task, resolve_task
from adalora.pretrained.loading import load_tokenizer

Input = str | tuple[str, str]


@dataclass(frozen=True)
class Prediction:
    """A label, and the probability of each label in the order of the classifier's."""

    label: str
    probabilities: dict[str, float]


Answer = Prediction | float


class Classifier:
    """Called on a text, a pair (a tuple) or a list of either; ``load`` makes it.

    Args:
        artefact: the first adapter, on its device.
        name: what ``use`` calls it.
        batch_size: texts in one pass.
        base_model: hub name or folder of the base, if it is elsewhere than it was.
        merged: merge the adapter into the weights; the classifier takes no other then.
        trust_remote_code: run the code of a base or a tokenizer that needs some.

    Raises:
        UserError: if the adapter cannot be merged.
    """

    def __init__(
        self,
        artefact: Artefact,
        *,
        name: str,
        batch_size: int = 32,
        base_model: str | None = None,
        merged: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, and must be at least 1.")
        self.batch_size = batch_size
        self.merged = merged
        self._base_model, self._trust = base_model, trust_remote_code
        if merged:
            merge_adapters(artefact.model)
        self._adapters = {name: artefact}
        self._tokenizers = {name: self._tokenizer_of(artefact)}
        self._active = name

    # ---- the adapter in use ----

    @property
    def model(self) -> PreTrainedModel:
        """The model in use, in evaluation mode."""
        return self._adapters[self._active].model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._tokenizers[self._active]

    @property
    def description(self) -> Description:
        """What its artefact says about itself."""
        return self._adapters[self._active].description

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Its labels in the order of the outputs; None for regression."""
        described = self.description
        if described.is_regression:
            return None
        return described.labels or tuple(map(str, range(described.num_labels)))

    # ---- several adapters ----

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they came."""
        return tuple(self._adapters)

    @property
    def active(self) -> str:
        """Name of the adapter in use."""
        return self._active

    def add(self, path: str | Path, name: str | None = None) -> str:
        """Load another artefact onto the base in memory; the one in use stays in use.

        Args:
            path: a run's folder or an artefact.
            name: for ``use``; the task's name, or else the folder's, if None.

        Returns:
            The name.

        Raises:
            UserError: if the name is taken, the artefact is damaged or was trained on another
                base, or this classifier is merged or fully fine-tuned.
        """
        first = next(iter(self._adapters.values()))
        if self.merged or first.base is None:
            why = "is merged" if self.merged else "was fine-tuned whole"
            raise UserError(
                f"The classifier {why}, so its base is not there for others; load {path} by itself."
            )
        source = find_artefact(path)
        artefact = load_artefact(source, sibling=first, trust_remote_code=self._trust)
        name = name or _default_name(source, artefact.description)
        if name in self._adapters:
            raise UserError(f"There is an adapter {name!r} already; give {path} another name.")
        tokenizer = self._tokenizer_of(artefact)
        self._adapters[name], self._tokenizers[name] = artefact, tokenizer
        return name

    def use(self, name: str) -> None:
        """Answer with the adapter ``name`` from now on.

        Raises:
            UserError: if there is none of that name.
        """
        if name not in self._adapters:
            raise UserError(f"There is no adapter {name!r}; there are {', '.join(self.names)}.")
        self._active = name

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[Classifier]:
        """Answer with the adapter ``name`` inside a ``with`` block, and as before after it."""
        before = self._active
        self.use(name)
        try:
            yield self
        finally:
            self._active = before

    def _tokenizer_of(self, artefact: Artefact) -> PreTrainedTokenizerBase:
        if artefact.tokenizer is not None:
            return artefact.tokenizer
        described = artefact.description
        return load_tokenizer(
            self._base_model or described.base_model,
            revision="main" if self._base_model else described.revision or "main",
            trust_remote_code=described.remote_code,
        )

    # ---- answers ----

    @overload
    def __call__(self, inputs: Input) -> Answer: ...
    @overload
    def __call__(self, inputs: list[Any]) -> list[Answer]: ...
    def __call__(self, inputs: Input | list[Any]) -> Answer | list[Answer]:
        """Classify.

        Args:
            inputs: a text; a pair of texts as a tuple; or a list of texts, or of pairs.

        Returns:
            A ``Prediction`` (for regression, a number), or a list of them in the order given.

        Raises:
            UserError: if an input is no text or pair, or the model was trained on the other kind.
        """
        if isinstance(inputs, list):
            return self.answers(self.logits(inputs))
        return self.answers(self.logits([inputs]))[0]

    def answers(self, logits: Tensor) -> list[Answer]:
        """What ``logits`` [n, labels] mean."""
        labels = self.labels
        if labels is None:
            return [float(value) for value in logits[:, 0]]
        return [
            Prediction(labels[row.index(max(row))], dict(zip(labels, row, strict=True)))
            for row in logits.double().softmax(dim=-1).tolist()
        ]

    @property
    def longest(self) -> int:
        """Tokens after which a text is cut."""
        return int(min(self.description.max_seq_length or 10**9, self.tokenizer.model_max_length))

    def share_cut(self, inputs: Sequence[Any]) -> float:
        """Share of the first 1,000 of ``inputs`` that are longer than ``longest``, and cut there.

        Raises:
            UserError: as ``__call__``.
        """
        return share_cut(self.tokenizer, self._columns(inputs[:SAMPLE]), self.longest)

    @torch.inference_mode()
    def logits(self, inputs: Sequence[Any]) -> Tensor:
        """Outputs of the model.

        Inputs of like length share a batch, the longest first, so that memory that does not
        suffice is noticed at once.

        Args:
            inputs: texts, or pairs.

        Returns:
            [len(inputs), labels], float32, on the CPU, in the order of the inputs.

        Raises:
            UserError: as ``__call__``; or if an output is not finite.
        """
        described, model = self.description, self.model
        result = torch.empty(len(inputs), described.num_labels)
        if not inputs:
            return result
        columns = self._columns(inputs)
        encoded = self.tokenizer(*columns, truncation=True, max_length=self.longest)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = sorted(range(len(inputs)), key=lambda index: -lengths[index])
        pad: Any = DataCollatorWithPadding(self.tokenizer)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [{key: values[index] for key, values in encoded.items()} for index in batch]
            outputs = model(**pad(rows).to(model.device)).logits
            result[batch] = outputs.float().cpu().reshape(len(batch), -1)
        bad = (~torch.isfinite(result)).any(dim=-1).nonzero()
        if len(bad):
            raise UserError(
                f"The model's output for input {int(bad[0]) + 1} is not finite; in half precision, "
                "try a base in float32."
            )
        return result

    def _columns(self, inputs: Sequence[Any]) -> list[list[str]]:
        """The first texts, and the second ones of pairs."""
        expected = text_columns(self.description)
        needed = None if expected is None else len(expected)
        for number, value in enumerate(inputs, start=1):
            texts = (value,) if isinstance(value, str) else value
            if (
                not isinstance(texts, tuple | list)
                or not all(isinstance(text, str) for text in texts)
                or len(texts) not in (1, 2)
            ):
                raise UserError(
                    f"Input {number} is {value!r:.80}, where a text or a pair of texts is expected."
                )
            needed = len(texts) if needed is None else needed
            if len(texts) != needed:
                kind = "pairs: (first, second)" if needed == 2 else "single texts"
                names = "" if expected is None else f" ({', '.join(expected)})"
                raise UserError(
                    f"Input {number} is {'a pair' if len(texts) == 2 else 'a single text'}, and "
                    f"this classifier takes {kind}{names}."
                )
        if needed == 1:
            return [[value if isinstance(value, str) else value[0] for value in inputs]]
        return [[value[0] for value in inputs], [value[1] for value in inputs]]


def text_columns(description: Description) -> tuple[str, ...] | None:
    """The one or two columns that the model was trained on; None if nobody noted it."""
    if description.text_columns is not None:
        return description.text_columns
    task = known_task(description)
    if task is None:
        return None
    keys = (task.sentence1_key, task.sentence2_key)
    return tuple(key for key in keys if key is not None)


def known_task(description: Description) -> Task | None:
    """The GLUE task that the model was trained on; None for any other."""
    try:
        return None if description.task is None else resolve_task(description.task)[0]
    except UserError:  # an artefact from elsewhere may name what it likes
        return None


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    merged: bool = False,
    batch_size: int = 32,
    base_model: str | None = None,
    name: str | None = None,
    trust_remote_code: bool = False,
) -> Classifier:
    """Load a trained artefact, ready to answer.

    Args:
        path: a run's folder (``--root_output_dir``) or an artefact (its ``model/``).
        device: where the model goes; None for the GPU if there is one.
        merged: merge the adapter into the weights, which is a little faster.
        batch_size: texts in one pass.
        base_model: hub name or folder of the base, if it is elsewhere than it was.
        name: of the adapter, for switching; the task's name, or else the folder's, if None.
        trust_remote_code: run the code that comes with the base, where the artefact says that it
            needs some.

    Raises:
        UserError: if there is no complete artefact, it is damaged, its base cannot be had, is
            another one than it was trained on or needs code that is not trusted, or it cannot be
            merged.
    """
    source = find_artefact(path)
    artefact = load_artefact(
        source,
        _usable(device or default_device()),
        base_model=base_model,
        trust_remote_code=trust_remote_code,
    )
    return Classifier(
        artefact,
        name=name or _default_name(source, artefact.description),
        batch_size=batch_size,
        base_model=base_model,
        merged=merged,
        trust_remote_code=trust_remote_code,
    )


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The device {device!r} cannot be used: {reason}") from error
    return found


def _default_name(folder: Path, description: Description) -> str:
    if description.task is not None:
        return description.task
    resolved = folder.resolve()
    return resolved.parent.name if resolved.name == "model" else resolved.name

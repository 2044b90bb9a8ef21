"""From texts to tokens: what the model is fed.

The tokens are kept in the data sets library's cache folder (``HF_DATASETS_CACHE``), in files named
after a digest of the texts, the tokenizer and the settings, so that a second start finds them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from accelerate import PartialState  # type: ignore[import-untyped]
from datasets import Dataset
from datasets.fingerprint import Hasher
from filelock import FileLock
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from adalora.glue.load import TaskData
from adalora.pretrained.deberta.packing import PackedMask
from adalora.pretrained.unpadded import is_unpadded
from adalora.training.arguments.inputs import DataArguments
from adalora.training.arguments.training import AdaLoraTrainingArguments

logger = logging.getLogger(__name__)


def tokenise(
    data: TaskData, tokenizer: PreTrainedTokenizerBase, arguments: DataArguments
) -> dict[str, Dataset]:
    """Tokenise every split, cut to the sample limits.

    Returns:
        Per split a data set with ``input_ids``, ``attention_mask``, ``token_type_ids`` where the
        model has them, and ``label`` where the split has labels.
    """
    limits = {
        "train": arguments.max_train_samples,
        **dict.fromkeys(data.validation_splits, arguments.max_val_samples),
        **dict.fromkeys(data.test_splits, arguments.max_test_samples),
    }
    length = longest(arguments, tokenizer)
    if length < arguments.max_seq_length:
        logger.warning(
            "--max_seq_length %d is more than the model's %d tokens; %d is used.",
            *(arguments.max_seq_length, tokenizer.model_max_length, length),
        )
    keys = [key for key in (data.sentence1_key, data.sentence2_key) if key is not None]

    def encode(examples: dict[str, list[Any]]) -> Any:
        return tokenizer(
            *(examples[key] for key in keys),
            padding="max_length" if arguments.pad_to_max_length else False,
            max_length=length,
            truncation=True,
        )

    settings = (keys, length, arguments.pad_to_max_length, _contents(tokenizer))
    # Once on each node: the other processes read what the first has just made.
    overwrite = arguments.overwrite_cache and PartialState().is_local_main_process
    tokenised = {}
    for name, split in data.splits.items():
        limit = limits.get(name)
        if limit is not None:
            split = split.select(range(min(limit, len(split))))
        drop = [column for column in split.column_names if column != "label"]
        # Test sets carry the placeholder -1 for every label, which is none.
        if name in data.test_splits and "label" in split.column_names:
            drop.append("label")
        file = _cache_file(split, (*settings, drop))
        # One process at a time makes a file: the first of each node comes here, and other runs.
        alone = nullcontext() if file is None else FileLock(f"{file}.lock")
        with alone, _left_as_found(tokenizer):
            _drop_if_damaged(file)
            tokenised[name] = split.map(
                encode,
                batched=True,
                remove_columns=drop,
                load_from_cache_file=not overwrite,
                cache_file_name=file,
                desc=f"Tokenising {name}",
            )
    return tokenised


def longest(arguments: DataArguments, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens after which a text is cut."""
    return int(min(arguments.max_seq_length, tokenizer.model_max_length))


def shares_cut(splits: Mapping[str, Dataset], length: int) -> dict[str, float]:
    """Set of examples -> share of its texts that fill ``length`` tokens, and are cut there."""
    return {
        name: sum(int((counts >= length).sum()) for counts in real_tokens(split)) / len(split)
        for name, split in splits.items()
    }


def real_tokens(split: Dataset) -> Iterator[np.ndarray[Any, Any]]:
    """The tokens of each text that are no padding, some thousands of texts [n] at a time."""
    for rows in split.with_format("arrow").iter(batch_size=10_000):
        # All sums are of one array: the sum up to a row's end less that up to its start.
        masks = rows["attention_mask"].combine_chunks()
        sums = np.concatenate([[0], masks.flatten().to_numpy().cumsum(dtype=np.int64)])
        yield np.diff(sums[masks.offsets.to_numpy() - masks.offsets[0].as_py()])


@contextmanager
def _left_as_found(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Take the length and the padding out again that tokenising writes into a tokenizer: the one
    that a run saves must not depend on whether the tokens were at hand.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        backend.enable_padding(**padding) if padding else backend.no_padding()


def _drop_if_damaged(file: str | None) -> None:
    """Remove kept tokens that cannot be read, so that they are made anew."""
    if file is None or not Path(file).exists():
        return
    try:
        Dataset.from_file(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        logger.warning("%s is damaged (%s); the texts are tokenised again.", file, error)
        Path(file).unlink()


def _contents(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """All that decides the tokens of a text; None for a tokenizer that does not say."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # What the last call padded and cut to is no part of it.
    parts = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return json.dumps([type(tokenizer).__name__, tokenizer.padding_side, parts])


def _cache_file(split: Dataset, settings: tuple[Any, ...]) -> str | None:
    """Where the tokens of ``split`` are kept; None if they cannot be."""
    if None in settings:
        return None
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "adalora-tokens"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    # A data set made from values in memory is fingerprinted by its content.
    return str(folder / f"{Hasher.hash([split._fingerprint, *settings])}.arrow")


@dataclass
class PackingCollator(DataCollatorWithPadding):  # type: ignore[misc]
    """Pads a batch, and works out its packing while the lengths are on the host.

    ``recurring`` is that of ``Packing.of``.
    """

    recurring: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """The batch, with a ``PackedMask`` for its attention mask."""
        batch = super().__call__(features)
        mask = batch["attention_mask"]
        batch["attention_mask"] = PackedMask.of(mask, recurring=self.recurring)
        return batch


def build_collator(
    tokenizer: PreTrainedTokenizerBase, training: AdaLoraTrainingArguments, model: nn.Module
) -> DataCollatorWithPadding:
    """Pad each batch to its longest text, and pack it for a model that computes no padding.

    Padding is to multiples of 8 where half precision gains by it.
    """
    multiple = 8 if training.fp16 else None
    if training.torch_compile or not any(map(is_unpadded, model.modules())):
        return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)
    half = training.bf16 or next(model.parameters()).dtype.itemsize == 2
    return PackingCollator(
        tokenizer, pad_to_multiple_of=multiple, recurring=half and training.device.type == "cpu"
    )

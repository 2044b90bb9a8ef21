"""From texts to tokens: what the model is fed."""

from __future__ import annotations

import logging
from typing import Any

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from adalora.glue import TaskData
from adalora.training.arguments import AdaLoraTrainingArguments, DataArguments

__all__ = ["build_collator", "tokenise"]

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
    length = min(arguments.max_seq_length, tokenizer.model_max_length)
    if length < arguments.max_seq_length:
        logger.warning(
            "--max_seq_length %d is more than the model's %d tokens; %d is used.",
            arguments.max_seq_length,
            tokenizer.model_max_length,
            length,
        )
    keys = [key for key in (data.sentence1_key, data.sentence2_key) if key is not None]

    def encode(examples: dict[str, list[Any]]) -> Any:
        return tokenizer(
            *(examples[key] for key in keys),
            padding="max_length" if arguments.pad_to_max_length else False,
            max_length=length,
            truncation=True,
        )

    tokenised = {}
    for name, split in data.splits.items():
        limit = limits.get(name)
        if limit is not None:
            split = split.select(range(min(limit, len(split))))
        drop = [column for column in split.column_names if column != "label"]
        # Test sets carry the placeholder -1 for every label, which is none.
        if name in data.test_splits and "label" in split.column_names:
            drop.append("label")
        tokenised[name] = split.map(
            encode,
            batched=True,
            remove_columns=drop,
            load_from_cache_file=not arguments.overwrite_cache,
            desc=f"Tokenising {name}",
        )
    return tokenised


def build_collator(
    tokenizer: PreTrainedTokenizerBase, training: AdaLoraTrainingArguments
) -> DataCollatorWithPadding:
    """Pad each batch to its longest text; to multiples of 8 where half precision gains by it."""
    return DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8 if training.fp16 else None)

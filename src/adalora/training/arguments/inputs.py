"""What a run starts from: the pretrained encoder, and the examples to train and evaluate on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from adalora.data.label_rule import TASK_TYPES
from adalora.errors import UserError
from adalora.glue.tasks import NO_DATA
from adalora.validation import COUNT, Interval, check_flags

BASE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def flag(default: Any, text: str, *, aliases: tuple[str, ...] = ()) -> Any:
    """A field of a dataclass of flags, with what ``--help all`` says of it.

    Args:
        default: its value where the flag is not given.
        text: what it is for.
        aliases: other spellings of it, with their dashes.
    """
    return field(default=default, metadata={"help": text, "aliases": list(aliases)})


@dataclass
class ModelArguments:
    """Which pretrained encoder to start from, and how it is loaded."""

    _argument_group_name: ClassVar[str] = "model"

    model_name_or_path: str = field(
        metadata={"help": "Hub id, local folder, or `nano` for the built-in miniature DeBERTaV3."}
    )
    config_name: str | None = flag(None, "Configuration, if not that of the model.")
    tokenizer_name: str | None = flag(None, "Tokenizer, if not that of the model.")
    cache_dir: str | None = flag(None, "Where files from the hub are kept.")
    use_fast_tokenizer: bool = flag(True, "Use the tokenizer of the `tokenizers` library.")
    model_revision: str = flag("main", "Branch, tag or commit of the model on the hub.")
    use_auth_token: bool = flag(False, "Send the hub token of `hf auth login` (private models).")
    trust_remote_code: bool = flag(
        False, "Allow a model that brings its own code; refused otherwise."
    )
    base_dtype: str = flag("float32", "Type of the frozen weights: float32, bfloat16 or float16.")
    position_query_bypass: bool = flag(
        False,
        "DeBERTa: compute the positional query without the adapter, as the original did; "
        "such a model cannot be merged exactly.",
    )
    unpad: bool = flag(
        True,
        "Run the encoder on the real tokens only (DeBERTaV3, BERT and its like), which changes no "
        "result but by rounding; --no_unpad computes padding as well, as transformers does.",
    )
    preset: str | None = flag(
        None,
        "Flags of a row of the paper's table 1, such as rte/adalora-0.3M; other flags that are "
        "given win. `adalora presets` lists them.",
    )

    def __post_init__(self) -> None:
        check_flags(self, {"base_dtype": tuple(BASE_DTYPES)})

    @property
    def dtype(self) -> torch.dtype:
        """The type the base weights are loaded in."""
        return BASE_DTYPES[self.base_dtype]


@dataclass
class DataArguments:
    """Which examples, and how they become tokens."""

    _argument_group_name: ClassVar[str] = "data"

    task_name: str | None = flag(
        None,
        "GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, ax; "
        "`mini-` before it takes the built-in miniature.",
    )
    data_dir: str | None = flag(None, "Folder of the official GLUE download (TSV files).")
    train_file: str | None = flag(None, "Training data: CSV, TSV, JSON, JSON lines or Parquet.")
    validation_file: str | None = flag(None, "Validation data, likewise.")
    test_file: str | None = flag(None, "Test data, likewise.")
    text_column: str | None = flag(None, "Column of the (first) text in your own files.")
    pair_column: str | None = flag(None, "Column of the second text of pairs.")
    label_column: str | None = flag(None, "Column of the label.")
    task_type: str | None = flag(
        None, "classification or regression, where the labels of your own files may be either."
    )
    no_quotes: bool = flag(False, "Quotation marks in CSV and TSV are characters.")
    encoding: str | None = flag(None, "Of your own files, such as latin-1; default: UTF-8.")
    max_seq_length: int = flag(128, "Tokens after which a text is cut off.")
    overwrite_cache: bool = flag(False, "Tokenise again even if a cached result exists.")
    pad_to_max_length: bool = flag(
        False,
        "Pad every text to max_seq_length. The original's default; the results are the same "
        "to rounding without it, several times faster.",
    )
    max_train_samples: int | None = flag(None, "Use only the first N training examples.")
    max_val_samples: int | None = flag(None, "Use only the first N validation examples.")
    max_test_samples: int | None = flag(None, "Use only the first N test examples.")

    def __post_init__(self) -> None:
        samples = ("max_train_samples", "max_val_samples", "max_test_samples")
        check_flags(
            self,
            {
                "task_type": TASK_TYPES,
                "max_seq_length": Interval(4, 1e7),
                **dict.fromkeys(samples, COUNT),
            },
        )
        if self.task_name is None and not (
            self.train_file or self.validation_file or self.test_file
        ):
            raise UserError(NO_DATA)

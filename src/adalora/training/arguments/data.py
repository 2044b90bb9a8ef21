"""Which examples a run learns from and is judged on, and how they become tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from adalora.errors import UserError
from adalora.validation import DATA_RANGES, check_numbers, told

__all__ = ["DataArguments"]


@dataclass
class DataArguments:
    """Which examples, and how they become tokens."""

    _argument_group_name: ClassVar[str] = "data"

    task_name: str | None = field(
        default=None,
        metadata=told(
            "GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, ax; "
            "`mini-` before it takes the built-in miniature."
        ),
    )
    data_dir: str | None = field(
        default=None, metadata=told("Folder of the official GLUE download (TSV files).")
    )
    train_file: str | None = field(
        default=None, metadata=told("Training data: CSV, TSV, JSON, JSON lines or Parquet.")
    )
    validation_file: str | None = field(default=None, metadata=told("Validation data, likewise."))
    test_file: str | None = field(default=None, metadata=told("Test data, likewise."))
    max_seq_length: int = field(default=128, metadata=told("Tokens after which a text is cut off."))
    overwrite_cache: bool = field(
        default=False, metadata=told("Tokenise again even if a cached result exists.")
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata=told(
            "Pad every text to max_seq_length. The original's default; the results are the same "
            "to rounding without it, several times faster."
        ),
    )
    max_train_samples: int | None = field(
        default=None, metadata=told("Use only the first N training examples.")
    )
    max_val_samples: int | None = field(
        default=None, metadata=told("Use only the first N validation examples.")
    )
    max_test_samples: int | None = field(
        default=None, metadata=told("Use only the first N test examples.")
    )

    def __post_init__(self) -> None:
        if self.max_seq_length < 4:
            raise UserError(f"--max_seq_length is {self.max_seq_length}; it must be at least 4.")
        check_numbers(self, DATA_RANGES)
        for name in ("max_train_samples", "max_val_samples", "max_test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; it must be at least 1.")
        if self.task_name is None and not (self.train_file or self.validation_file):
            raise UserError(
                "No data was named: give --task_name (a GLUE task, or mini-sst2 and so on for the "
                "built-in miniature), or your own --train_file and --validation_file."
            )

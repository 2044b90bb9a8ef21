"""Which pretrained encoder a run starts from, and how it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from adalora.errors import UserError
from adalora.validation import told

__all__ = ["ModelArguments"]

BASE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass
class ModelArguments:
    """Which pretrained encoder to start from, and how it is loaded."""

    _argument_group_name: ClassVar[str] = "model"

    model_name_or_path: str = field(
        metadata=told("Hub id, local folder, or `nano` for the built-in miniature DeBERTaV3.")
    )
    config_name: str | None = field(
        default=None, metadata=told("Configuration, if not that of the model.")
    )
    tokenizer_name: str | None = field(
        default=None, metadata=told("Tokenizer, if not that of the model.")
    )
    cache_dir: str | None = field(default=None, metadata=told("Where files from the hub are kept."))
    use_fast_tokenizer: bool = field(
        default=True, metadata=told("Use the tokenizer of the `tokenizers` library.")
    )
    model_revision: str = field(
        default="main", metadata=told("Branch, tag or commit of the model on the hub.")
    )
    use_auth_token: bool = field(
        default=False, metadata=told("Send the hub token of `hf auth login` (private models).")
    )
    trust_remote_code: bool = field(
        default=False, metadata=told("Allow a model that brings its own code; refused otherwise.")
    )
    base_dtype: str = field(
        default="float32",
        metadata=told("Type of the frozen weights: float32, bfloat16 or float16."),
    )
    position_query_bypass: bool = field(
        default=False,
        metadata=told(
            "DeBERTa: compute the positional query without the adapter, as the original did; "
            "such a model cannot be merged exactly."
        ),
    )
    unpad: bool = field(
        default=True,
        metadata=told(
            "DeBERTaV3: run the encoder on the real tokens only, which changes no result but by "
            "rounding; --no_unpad computes padding as well, as transformers does."
        ),
    )
    preset: str | None = field(
        default=None,
        metadata=told(
            "Flags of a row of the paper's table 1, such as rte/adalora-0.3M; flags given beside "
            "it win. `adalora presets` lists them."
        ),
    )

    def __post_init__(self) -> None:
        if self.base_dtype not in BASE_DTYPES:
            raise UserError(
                f"--base_dtype is {self.base_dtype!r}; choose one of {', '.join(BASE_DTYPES)}."
            )

    @property
    def dtype(self) -> torch.dtype:
        """The type the base weights are loaded in."""
        return BASE_DTYPES[self.base_dtype]

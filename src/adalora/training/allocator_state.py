"""The allocator's state in one safetensors file: tensors by path, numbers as JSON in its header.

Nothing in it is unpickled. The file is written aside and renamed, so it is complete or absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adalora.errors import UserError

__all__ = ["load_state", "save_state"]

_NUMBERS = "numbers"


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a nested state of tensors and JSON values."""
    tensors, numbers = _split(state, "")
    temporary = path.with_name(path.name + ".partial")
    save_file(tensors, temporary, metadata={_NUMBERS: json.dumps(numbers)})
    os.replace(temporary, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote.

    Raises:
        UserError: if the file is absent or damaged.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so AdaLoRA cannot continue from this checkpoint; "
            "choose another checkpoint, or start afresh with --overwrite_output_dir."
        )
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()[_NUMBERS])
            for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                _put(state, name.split("/"), file.get_tensor(name))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged and cannot be read: {error}") from error
    return state


def _split(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[prefix + key] = value.detach().cpu().contiguous()
        elif isinstance(value, Mapping):
            inner_tensors, numbers[key] = _split(value, f"{prefix}{key}/")
            tensors |= inner_tensors
        else:
            numbers[key] = value
    return tensors, numbers


def _put(state: dict[str, Any], path: list[str], tensor: Tensor) -> None:
    *folders, name = path
    for folder in folders:
        state = state.setdefault(folder, {})
    state[name] = tensor

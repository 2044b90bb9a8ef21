"""A nested state in one safetensors file: tensors by path, numbers as JSON in its header.

The allocator, the optimizer and the random generators are kept this way. Nothing in such a file is
unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from adalora.errors import UserError
from adalora.storage.atomic import atomic_write
from adalora.storage.files import unshare_for_safetensors

_NUMBERS = "numbers"
_DAMAGE = (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a nested state of tensors and JSON values; anything else is refused."""
    tensors, metadata = _content(state, path.name)
    with atomic_write(path) as new:
        save_file(tensors, new, metadata=metadata)


def state_bytes(state: Mapping[str, Any], name: str) -> bytes:
    """The content of the file ``name`` that ``save_state`` would write, to send it elsewhere."""
    tensors, metadata = _content(state, name)
    return save(tensors, metadata=metadata)


def _content(state: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, numbers = _split(state, "")
    try:
        return unshare_for_safetensors(tensors), {_NUMBERS: json.dumps(numbers)}
    except TypeError as error:
        raise UserError(f"{name} cannot be written without pickling: {error}.") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what ``save_state`` wrote; tensors are on the CPU.

    Raises:
        UserError: if the file is absent or damaged.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so training cannot continue from this checkpoint; "
            "choose another checkpoint, or start afresh with --overwrite_output_dir."
        )
    try:
        with safe_open(path, framework="pt") as file:
            state: dict[str, Any] = json.loads(file.metadata()[_NUMBERS])
            for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                inner, (*folders, last) = state, name.split("/")
                for folder in folders:
                    inner = inner.setdefault(folder, {})
                inner[last] = file.get_tensor(name)
    except _DAMAGE as error:
        raise UserError(f"{path} is damaged and cannot be read: {error}") from error
    return state


def tensors_of(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested state with its path."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield prefix + key, value
        elif isinstance(value, Mapping):
            yield from tensors_of(value, f"{prefix}{key}/")


def _split(state: Mapping[str, Any], prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[prefix + key] = value
        elif isinstance(value, Mapping):
            inner_tensors, numbers[key] = _split(value, f"{prefix}{key}/")
            tensors |= inner_tensors
        else:
            numbers[key] = value
    return tensors, numbers

"""Tensor and JSON files: each complete or as it was before, and none of them executable.

torch is imported by the functions on tensors alone, so that reading results needs none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from adalora.errors import UserError, is_out_of_memory
from adalora.storage.atomic import atomic_write

if TYPE_CHECKING:
    from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` as safetensors to ``path``, whole or not at all; NaN is refused."""
    from safetensors.torch import save_file

    refuse_not_finite(tensors, path)
    with atomic_write(path) as new:
        save_file(unshare_for_safetensors(tensors), new, metadata={"format": "pt"})


def unshare_for_safetensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: on the CPU, contiguous, none in another's memory.

    Only what is not so already is copied: a whole model is written from where it lies.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name, tensor in sorted(plain.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            plain[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return plain


def refuse_not_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse to write ``tensors`` to ``path`` if one of them holds NaN or an infinity."""
    if bad := not_finite(tensors.items()):
        raise UserError(
            f"Refusing to write {path}: {listed(bad)} holds NaN or infinity, so training has "
            "diverged. Lower the learning rate, or go back to an earlier checkpoint."
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of those that hold NaN or an infinity."""
    return [name for name, tensor in tensors if not is_finite(tensor)]


def is_finite(tensor: Tensor) -> bool:
    """Whether ``tensor`` holds neither NaN nor an infinity.

    Judged by its smallest and its largest number, which NaN would take the place of:
    ``torch.isfinite`` makes copies of the size of its argument.
    """
    import torch

    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        UserError: if the file is absent, truncated or of another format.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04" or start[:1] == b"\x80":
            raise UserError(
                f"{path} is a pickle file of torch.save, and safetensors was expected."
            ) from error
        raise UserError(f"{path} is damaged or is not a safetensors file: {error}") from error


def read_bin(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``torch.save`` state dictionary, by torch's restricted unpickler.

    Raises:
        UserError: if the file is absent, damaged, holds anything but tensors by name, or would
            need code to be run.
    """
    import torch

    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # in a damaged file the unpickler stumbles in every way there is
        if is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a state dictionary of tensors (nothing else is read, for "
            f"safety): {reason}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(
            f"{path} does not hold a dictionary from names to tensors; give a state dictionary."
        )
    return dict(state)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON, whole or not at all."""
    with atomic_write(path) as new:
        new.write_text(json.dumps(values, indent=2, default=_plain) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """NumPy and torch scalars, which metrics come as, as Python numbers."""
    if callable(getattr(value, "item", None)):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: if the file is absent, damaged or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, and a JSON object was expected.")
    return values


def listed(names: list[str], most: int = 5) -> str:
    """``names`` for a sentence, shortened after ``most``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """``value`` in dictionaries, lists, texts and numbers; None for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if callable(getattr(value, "item", None)):  # a scalar of NumPy or torch
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""Which part of a classifier is its head, and what it is held in.

The head is everything outside the encoder, and the pooler.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from loralib.layers import adapter_dtype

__all__ = ["base_path", "is_head", "widen_head"]


def base_path(model: nn.Module) -> str:
    """Path of the encoder inside ``model``, such as ``deberta``; "" if ``model`` is the encoder."""
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    return prefix if prefix and isinstance(getattr(model, prefix, None), nn.Module) else ""


def is_head(model: nn.Module, path: str) -> bool:
    """Whether a module or a parameter at ``path`` belongs to the pooler or the classifier.

    BERT keeps its pooler inside the encoder, DeBERTa beside it; both are trained from the task.
    """
    base = base_path(model)
    if base:
        if path != base and not path.startswith(f"{base}."):
            return True
        path = path.removeprefix(base).removeprefix(".")
    return path == "pooler" or path.startswith("pooler.")


def widen_head(model: nn.Module) -> None:
    """Hold the head in float32 over an encoder in half precision; its inputs are cast to that.

    The head trains. In bfloat16 small steps of it are lost, and float16 has no room for AdamW's
    epsilon: the first step divides zero by zero.
    """
    for path, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if is_head(model, path) and any(adapter_dtype(p) != p.dtype for p in own):
            module.to(adapter_dtype(own[0]))
            module.register_forward_pre_hook(_in_its_own_type)


def _in_its_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and torch.is_floating_point(x) else x for x in inputs
    )

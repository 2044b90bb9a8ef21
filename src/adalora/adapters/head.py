"""Which part of a classifier is its head: everything outside the encoder, and the pooler."""

from __future__ import annotations

from torch import nn

__all__ = ["base_path", "is_head"]


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

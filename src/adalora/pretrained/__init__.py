"""A pretrained encoder loaded from the hub, a folder or the package, and made fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adalora.pretrained.loading import load_classifier, load_tokenizer

__all__ = ["load_classifier", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    """Import on first use, as loading needs transformers."""
    if name in __all__:
        from adalora.pretrained import loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

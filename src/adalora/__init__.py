"""AdaLoRA on today's libraries: adapt pretrained encoders with very few trained parameters.

Importing this package loads nothing heavy; each room (``adalora.adapters``, ``adalora.glue``,
``adalora.training``, ...) is imported when it is used. The algorithm itself lives in ``loralib``.
``adalora.load`` opens what a run has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adalora.inference.classifier import load

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import on first use, as ``load`` needs torch and transformers."""
    if name == "load":
        from adalora.inference.classifier import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

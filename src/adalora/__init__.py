"""AdaLoRA on today's libraries: adapt pretrained encoders with very few trained parameters.

Importing this package loads nothing heavy; each room (``adalora.adapters``, ``adalora.glue``,
``adalora.training``, ...) is imported when it is used. The algorithm itself lives in ``loralib``.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"

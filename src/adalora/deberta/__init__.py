"""The patched DeBERTaV3: our attention in the installed model, and the reference it is held to."""

from __future__ import annotations

from adalora.deberta.attention import DisentangledAttention
from adalora.deberta.patch import patch
from adalora.deberta.scores import disentangled_scores, relative_buckets

__all__ = ["DisentangledAttention", "disentangled_scores", "patch", "relative_buckets"]

"""The patched DeBERTaV3: our attention in the installed model, and the reference it is held to."""

from __future__ import annotations

from adalora.pretrained.deberta.attention import DisentangledAttention
from adalora.pretrained.deberta.patch import patch
from adalora.pretrained.deberta.reference import disentangled_scores, relative_buckets

__all__ = ["DisentangledAttention", "disentangled_scores", "patch", "relative_buckets"]

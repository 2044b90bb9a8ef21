"""The attention that takes the place of the installed DebertaV2 model's.

It adopts the projections of the module it replaces, so parameters and their names stay those of the
hub checkpoints. Packed tokens go through ``packed_attention`` on a CPU and through
``whole_batch_attention`` on an accelerator; padded batches through the readable reference.
Differences to transformers' own: position tables are not repeated per example, and scores and
softmax are in float32 under half precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adalora.errors import UserError
from adalora.pretrained.deberta.packed_attention import Positions, packed_attention
from adalora.pretrained.deberta.packing import Packing
from adalora.pretrained.deberta.reference import disentangled_scores, relative_buckets
from adalora.pretrained.deberta.whole_batch_attention import Sequences, whole_batch_attention


@dataclass(frozen=True)
class DisentangledBatch:
    """What the layers of an unpadded encoder are given in place of an attention mask.

    Attributes:
        packing: the real tokens and their groups.
        positions: how distances index the position tables.
        sequences: the same tokens by sequence, for the attention of an accelerator; None on a CPU.
    """

    packing: Packing
    positions: Positions
    sequences: Sequences | None = None


class DisentangledAttention(nn.Module):
    """Multi-head self-attention over contents and relative positions.

    Args:
        installed: the ``DisentangledSelfAttention`` to take the place of.
        position_query_bypass: compute the positional query with the base weight of ``query_proj``
            alone, as the original AdaLoRA code did (NLU/src/transformers/models/deberta_v2/
            modeling_deberta_v2.py); such a model cannot be merged exactly.
    """

    def __init__(self, installed: nn.Module, *, position_query_bypass: bool = False) -> None:
        super().__init__()
        source: Any = installed
        self.num_attention_heads: int = source.num_attention_heads
        self.attention_head_size: int = source.attention_head_size
        self.all_head_size: int = source.all_head_size
        self.relative_attention: bool = source.relative_attention
        self.share_att_key: bool = source.share_att_key
        self.pos_att_type = tuple(source.pos_att_type)
        self.position_query_bypass = position_query_bypass
        self.query_proj: nn.Module = source.query_proj
        self.key_proj: nn.Module = source.key_proj
        self.value_proj: nn.Module = source.value_proj
        self.dropout: nn.Module = source.dropout
        if self.relative_attention:
            self.position_buckets: int = source.position_buckets
            self.max_relative_positions: int = source.max_relative_positions
            self.pos_ebd_size: int = source.pos_ebd_size
            self.pos_dropout: nn.Module = source.pos_dropout
            # Only where contents and positions have projections of their own.
            if hasattr(source, "pos_key_proj"):
                self.pos_key_proj: nn.Module = source.pos_key_proj
            if hasattr(source, "pos_query_proj"):
                self.pos_query_proj: nn.Module = source.pos_query_proj
        self.train(installed.training)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | DisentangledBatch,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden_states: [batch, length, hidden], or [tokens, hidden] of a packed batch.
            attention_mask: [batch, 1, length, length] (or broadcastable), nonzero where a query
                may look. A query that may look nowhere gets the mean of all values. Or the packed
                batch.
            output_attentions: also return the probabilities.
            query_states: other states to take the queries from, of the same shape.
            relative_pos: δ(i, j) as the encoder prepared it, [1, length, length].
            rel_embeddings: table of relative positions [2·span, hidden].

        Returns:
            Context in the shape of ``hidden_states``, and probabilities
            [batch, heads, length, length] or None.
        """
        if isinstance(attention_mask, DisentangledBatch):
            return self._packed(hidden_states, attention_mask, rel_embeddings), None
        queries = hidden_states if query_states is None else query_states
        query = self._heads(self.query_proj(queries))
        key = self._heads(self.key_proj(hidden_states))
        value = self._heads(self.value_proj(hidden_states))
        position_key = position_query = None
        if self.relative_attention and rel_embeddings is not None:
            position_key, position_query = self._tables(rel_embeddings)
        scores = disentangled_scores(
            query,
            key,
            self._buckets(relative_pos, key),
            terms=self._terms,
            position_key=position_key,
            position_query=position_query,
        )
        # The lowest finite number, not -inf: a query that may look nowhere stays free of NaN.
        scores = scores.masked_fill(~attention_mask.bool(), torch.finfo(scores.dtype).min)
        probabilities: Tensor = self.dropout(scores.softmax(dim=-1).to(value.dtype))
        context = (probabilities @ value).transpose(1, 2).flatten(2)
        return context, probabilities if output_attentions else None

    @property
    def _terms(self) -> int:
        """Products in the score."""
        return 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)

    def _packed(
        self, states: Tensor, batch: DisentangledBatch, rel_embeddings: Tensor | None
    ) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        sizes = (self.num_attention_heads, self.attention_head_size)
        query, key, value = (
            project(states).unflatten(-1, sizes)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        position_key = position_query = None
        if self.relative_attention and rel_embeddings is not None:
            position_key, position_query = self._tables(rel_embeddings)
        inputs = (query, key, value, position_key, position_query)
        scale = math.sqrt(self.attention_head_size * self._terms)
        dropout = cast(nn.Dropout, self.dropout).p if self.training else 0.0
        if batch.sequences is None:
            groups, positions = batch.packing.groups, batch.positions
            context = packed_attention(
                *inputs, groups=groups, positions=positions, scale=scale, dropout=dropout
            )
        else:
            context = whole_batch_attention(
                *inputs, sequences=batch.sequences, scale=scale, dropout=dropout
            )
        return context.flatten(1)

    def _heads(self, states: Tensor) -> Tensor:
        """[..., length, hidden] -> [..., heads, length, d]."""
        sizes = (self.num_attention_heads, self.attention_head_size)
        split: Tensor = states.unflatten(-1, sizes)
        return split.transpose(-2, -3)

    def _buckets(self, relative_pos: Tensor | None, key: Tensor) -> Tensor:
        length = key.shape[-2]
        if not self.relative_attention:
            return torch.zeros(length, length, dtype=torch.long, device=key.device)
        if relative_pos is None:
            return relative_buckets(
                length,
                buckets=self.position_buckets,
                max_position=self.max_relative_positions,
                device=key.device,
            )
        return relative_pos.reshape(relative_pos.shape[-2:]).to(key.device, torch.long)

    def _tables(self, rel_embeddings: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Projected tables KR and QR, [heads, 2·span, d]; None where the model has no such term."""
        table = self.pos_dropout(rel_embeddings)[: 2 * self.pos_ebd_size]
        key = query = None
        if "c2p" in self.pos_att_type:
            project = self.key_proj if self.share_att_key else self.pos_key_proj
            key = self._heads(project(table))
        if "p2c" in self.pos_att_type:
            if not self.share_att_key:
                query = self._heads(self.pos_query_proj(table))
            elif self.position_query_bypass:
                query = self._heads(self._base_query(table))
            else:
                query = self._heads(self.query_proj(table))
        return key, query

    def _base_query(self, table: Tensor) -> Tensor:
        projection: Any = self.query_proj
        if getattr(projection, "merged", False):
            raise UserError(
                "query_proj is merged, and position_query_bypass needs its base weight: unmerge "
                "it, or train without the bypass."
            )
        return F.linear(table, projection.weight, projection.bias)

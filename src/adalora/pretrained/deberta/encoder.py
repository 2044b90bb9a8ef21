"""DebertaV2Model whose encoder runs on the real tokens of a batch only.

Embeddings, projections, feed-forward layers, norms and dropout see ``[tokens, hidden]`` instead of
``[batch, length, hidden]``; the attention sees groups of similar length. Outputs are padded again
with zeros, where the installed model leaves what it computed from padding.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Model

from adalora.pretrained.deberta.attention import DisentangledBatch
from adalora.pretrained.deberta.packed_attention import Positions
from adalora.pretrained.deberta.packing import Packing, can_embed_packed
from adalora.pretrained.deberta.reference import distance_buckets
from adalora.pretrained.deberta.whole_batch_attention import Sequences


class UnpaddedDebertaV2Model(DebertaV2Model):  # type: ignore[misc]
    """The installed model with another way through it; parameters and their names are its own.

    ``patch`` turns a loaded model into one. ``unpad`` = False takes the installed way.
    """

    unpad: bool

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the installed model's; shapes and results are the same."""
        config = self.config
        wants_attentions = (
            config.output_attentions if output_attentions is None else output_attentions
        )
        packing = None
        if self.unpad and (input_ids is None) != (inputs_embeds is None):
            inputs = input_ids if inputs_embeds is None else inputs_embeds
            packing = self._packing(cast(Tensor, inputs), attention_mask, bool(wants_attentions))
        if packing is None:
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
                **kwargs,
            )
        states = self._embed(packing, input_ids, token_type_ids, position_ids, inputs_embeds)
        all_states = self._encode(packing, states)
        last = packing.pad(all_states[-1])
        wants_states = (
            config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        hidden_states = tuple(map(packing.pad, all_states)) if wants_states else None
        if not (config.return_dict if return_dict is None else return_dict):
            return (last,) if hidden_states is None else (last, hidden_states)
        return BaseModelOutput(last_hidden_state=last, hidden_states=hidden_states)

    def _packing(
        self, inputs: Tensor, attention_mask: Tensor | None, wants_attentions: bool
    ) -> Packing | None:
        """None where the installed way has to be taken."""
        if wants_attentions:
            warnings.warn(
                "Attention probabilities were asked for: the padded reference computes them.",
                stacklevel=3,
            )
            return None
        if self.z_steps > 1 or torch.compiler.is_compiling() or not can_embed_packed(self):
            return None
        return Packing.for_batch(attention_mask, inputs, self.dtype)

    def _embed(
        self,
        packing: Packing,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
    ) -> Tensor:
        """[rows, hidden]."""
        if position_ids is None:
            position_ids = packing.rows % packing.length
        else:
            position_ids = packing.pack(position_ids.expand(packing.batch, -1))
        parts = [
            None if part is None else packing.pack(part)[None]
            for part in (input_ids, token_type_ids, inputs_embeds)
        ]
        if input_ids is not None:
            words = packing.words(self.get_input_embeddings(), input_ids)
            parts = parts if words is None else [None, parts[1], words[None]]
        embedded: Tensor = self.embeddings(
            input_ids=parts[0],
            token_type_ids=parts[1],
            position_ids=position_ids[None],
            inputs_embeds=parts[2],
        )
        return embedded[0]

    def _encode(self, packing: Packing, states: Tensor) -> list[Tensor]:
        """The states before the first layer and after each, [rows, hidden]."""
        encoder: Any = self.encoder
        table, positions = self._positions(packing)
        at_once = packing.starts is not None and _attends_at_once(states.device)
        sequences = Sequences.of(packing, positions) if at_once else None
        batch = DisentangledBatch(packing, positions, sequences)
        everything = [states]
        for number, layer in enumerate(encoder.layer):
            following, _ = layer(everything[-1], batch, rel_embeddings=table)
            if number == 0 and encoder.conv is not None:
                mask = packing.pad(torch.ones_like(packing.rows))
                padded = encoder.conv(packing.pad(states), packing.pad(following), mask)
                following = packing.pack(padded)
            everything.append(following)
        return everything

    def _positions(self, packing: Packing) -> tuple[Tensor | None, Positions]:
        """The rows of the position table that the batch's distances reach, and which has which."""
        encoder: Any = self.encoder
        length = packing.longest
        device = packing.rows.device
        if not encoder.relative_attention:
            return None, Positions(torch.zeros(2 * length - 1, dtype=torch.long, device=device))
        first, last, index = self._distances(length, device)
        table = encoder.get_rel_embedding().narrow(0, first, last - first + 1)
        return table, Positions(index)

    def _distances(self, length: int, device: torch.device) -> tuple[int, int, Tensor]:
        """First and last row of the position table for distances below ``length``, and the row of
        each distance from -(length - 1) on, counted from the first; worked out once per length.
        """
        kept: dict[tuple[int, torch.device], tuple[int, int, Tensor]]
        kept = self.__dict__.setdefault("_distances_kept", {})
        if (length, device) not in kept:
            encoder: Any = self.encoder
            span = encoder.rel_embeddings.num_embeddings // 2
            buckets = distance_buckets(
                torch.arange(1 - length, length),
                buckets=encoder.position_buckets,
                max_position=encoder.max_relative_positions,
            )
            # A bucket never falls as the distance grows, so the rows are side by side.
            rows = (buckets + span).clamp(0, 2 * span - 1)
            first, last = int(rows[0]), int(rows[-1])
            kept[length, device] = first, last, (rows - first).to(device)
        return kept[length, device]


def _attends_at_once(device: torch.device) -> bool:
    """Whether groups that suit a processor's cache would be no more than many small launches."""
    return device.type != "cpu"

"""What a micro-batch's loss counts for in its step, and the consistency loss.

The consistency loss is behind ``--reg_loss_wgt`` and ``--masking_prob``. Source of its
form: microsoft/LoRA, examples/NLU, DebertaV2ForSequenceClassification (R-Drop with a mean
distribution). The batch passes twice, with different dropout and, in the second pass, tokens
replaced by the unknown token with probability ``masking_prob``::

    CE(p1) + CE(p2) + w/2 * (KL(m || p1) + KL(m || p2)),   m = softmax of the mean logits

Departures: the term exists in training only (there it also replaced the evaluation loss), and the
special tokens come from the tokenizer instead of being assumed to be 1, 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class StepExamples:
    """The examples of one optimizer step.

    ``rows`` are this process's own in each micro-batch, of which only the last may be short;
    ``total`` are those of all micro-batches and processes.
    """

    rows: tuple[int, ...]
    total: int

    def weight(self, *, last: bool, processes: int) -> float:
        """What makes a micro-batch's mean loss count by its examples; 1 where all are full.

        ``last`` is whether it is the step's last micro-batch.
        """
        if self.total == 0:  # batches without a tensor of which rows could be counted
            return 1.0
        rows = self.rows[-1 if last else 0]
        return rows * processes / (self.total / len(self.rows))


def mask_tokens(
    input_ids: Tensor, *, probability: float, unknown_id: int, special_ids: list[int]
) -> Tensor:
    """Replace tokens [batch, length] by ``unknown_id``, never a special one."""
    if probability == 0:
        return input_ids
    special = torch.isin(input_ids, torch.tensor(special_ids, device=input_ids.device))
    chosen = torch.rand(input_ids.shape, device=input_ids.device) < probability
    return torch.where(chosen & ~special, unknown_id, input_ids)


def consistency_loss(
    model: nn.Module, inputs: dict[str, Any], masked_ids: Tensor, weight: float
) -> Tensor:
    """Loss of two passes over one batch: scalar, float32.

    Args:
        model: a sequence classifier.
        inputs: its keyword arguments, with ``input_ids`` and integer ``labels`` [batch].
        masked_ids: tokens of the second pass, [batch, length].
        weight: factor of the mean of the two divergences.
    """
    first = model(**inputs)
    second = model(**{**inputs, "input_ids": masked_ids})
    logits = [output.logits.float() for output in (first, second)]
    target = F.softmax((logits[0] + logits[1]) / 2, dim=-1)
    # The mean runs over classes as well as over the batch: the published weights assume it.
    divergence = sum(
        F.kl_div(F.log_softmax(one, dim=-1), target, reduction="none").mean() for one in logits
    )
    return first.loss + second.loss + 0.5 * weight * divergence

"""Whether what was written computes what was trained, measured on random input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adalora.errors import UserError
from adalora.pretrained.loading import longest_input

if TYPE_CHECKING:
    from adalora.export.formats import Predict


#: Batch size and share of the longest length, of the five random batches.
_SHAPES = ((1, 0.0), (2, 0.05), (3, 0.15), (5, 0.5), (2, 1.0))


@dataclass(frozen=True)
class Agreement:
    """The largest difference of logits between two models, and the largest allowed."""

    difference: float
    allowed: float
    batches: int


def input_names(model: PreTrainedModel) -> list[str]:
    """Inputs that ``model`` tells apart: token types only where it knows more than one."""
    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return names


def random_batches(model: PreTrainedModel, *, max_length: int | None) -> list[dict[str, Tensor]]:
    """Five batches of random tokens of different shapes, from one token to ``max_length``.

    That is 128 for None, and the model's own limit holds too.

    Returns:
        Batches of int64 [batch, length] by input name; the rows of each end in paddings of
        different lengths. Always the same ones.
    """
    config = model.config
    generator = torch.Generator().manual_seed(0)
    longest = min(longest_input(config), max_length or 128)
    padding = config.pad_token_id or 0
    batches = []
    for rows, share in _SHAPES:
        length = max(1, round(share * longest))
        ids = torch.randint(0, config.vocab_size - 1, (rows, length), generator=generator)
        ids += ids >= padding  # every token but the padding
        kept = torch.linspace(length, max(1, length // 3), rows).round()
        mask = (torch.arange(length) < kept[:, None]).long()
        batch = {"input_ids": ids * mask + padding * (1 - mask), "attention_mask": mask}
        if "token_type_ids" in input_names(model):
            types = torch.randint(0, config.type_vocab_size, ids.shape, generator=generator)
            batch["token_type_ids"] = types * mask
        batches.append(batch)
    return batches


def predictor(model: nn.Module) -> Predict:
    """``model`` as a function from inputs to logits, in evaluation mode."""
    model.eval()

    @torch.no_grad()
    def predict(batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = model(**batch).logits
        return logits.float().cpu()

    return predict


def measure(
    run: PreTrainedModel,
    other: Predict,
    batches: Sequence[dict[str, Tensor]],
    *,
    tolerance: float,
    what: str,
) -> Agreement:
    """Compare the logits of ``other`` with those of ``run``.

    Allowed is ``tolerance``, times the largest logit where that is above 1; or four times what
    float32 costs the run itself, which in a deep model can be more: two ways to the same number
    differ by so much without either being wrong.

    ``run`` is the same afterwards; ``what`` names ``other`` in the message.

    Raises:
        UserError: if they differ by more, or a logit is no finite number.
    """
    predict = predictor(run)
    expected = [predict(batch) for batch in batches]
    if not all(bool(logits.isfinite().all()) for logits in expected):
        raise UserError("The run itself computes NaN or infinity on random input; nothing written.")
    found = [other(batch) for batch in batches]
    difference = _largest_difference(found, expected)
    allowed = tolerance * max(1.0, max(float(logits.abs().max()) for logits in expected))
    if difference > allowed:
        allowed = max(allowed, 4 * _largest_difference(_in_double(run, batches), expected))
    if difference > allowed:
        raise UserError(
            f"{what} does not compute what the run computes: logits differ by {difference:.1e}, "
            f"and {allowed:.1e} is allowed. Nothing was written; please report this."
        )
    return Agreement(difference, allowed, len(batches))


def _in_double(model: PreTrainedModel, batches: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Logits of ``model`` computed in float64; every float32 number survives the way there."""
    dtype = model.dtype
    try:
        predict = predictor(model.double())
        return [predict(batch) for batch in batches]
    finally:
        nn.Module.to(model, dtype)


def _largest_difference(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Of their elements; infinite where they cannot be compared."""
    pairs = list(zip(one, two, strict=True))
    if any(a.shape != b.shape or not bool(a.isfinite().all()) for a, b in pairs):
        return float("inf")
    return max(float((a - b).abs().max()) for a, b in pairs)

"""A step whose gradient is NaN or infinite: left out, counted, and not gone on with for ever.

One such step would make every weight it reaches NaN, and every average of the optimizer. It is left
out as a whole instead: parameters, optimizer and importance stay exactly as they were. Learning
rate and budget go on by their schedules, and so does pruning, as after an overflow in half
precision. Several processes decide alike, because their gradients are the same by then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from adalora.errors import UserError

logger = logging.getLogger(__name__)

#: So many in a row are no accident of one batch.
MOST_IN_A_ROW = 10


@dataclass
class BadSteps:
    """How many steps were left out: since the last log record, in a row, and in the whole run.

    ``good`` counts the others since the last record.
    """

    unlogged: int = 0
    good: int = 0
    in_a_row: int = 0
    total: int = 0

    def leave_out(self, norm: Tensor | float, parameters: Iterable[Tensor], *, step: int) -> bool:
        """Drop the gradients if their norm is not finite, so that the optimizer finds none.

        The Trainer has waited for the device in this step already, to see whether the loss is NaN.

        Args:
            norm: of all gradients, scalar.
            parameters: those that are trained.
            step: the number of this step, from 1, for messages.

        Returns:
            Whether the step is left out.

        Raises:
            UserError: if it is the last of ``MOST_IN_A_ROW`` in a row.
        """
        if bool(torch.isfinite(torch.as_tensor(norm))):
            self.in_a_row = 0
            self.good += 1
            return False
        for parameter in parameters:
            parameter.grad = None
        self.unlogged += 1
        self.in_a_row += 1
        self.total += 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"The gradient was NaN or infinite in {self.in_a_row} steps in a row, up to step "
                f"{step}; nothing was learnt from them. Look for such numbers in the labels, "
                "lower --learning_rate, or leave --bf16 and half-precision --base_dtype out."
            )
        logger.warning("Step %d was left out: its gradient is NaN or infinite.", step)
        return True

    def note_in(self, logs: dict[str, float]) -> None:
        """Tell those since the last log record, from which it then counts anew.

        The Trainer gives them the mean loss of the others, and 0 where there are no others.
        """
        if self.unlogged:
            logs["steps_left_out"] = self.unlogged
            if self.good == 0:
                logs["loss"] = float("nan")
        self.unlogged = self.good = 0

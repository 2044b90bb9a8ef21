"""Flags that are sound by themselves and not together, or not with the data; told before any work.

What concerns one group of flags alone is checked by its dataclass (``arguments.py``).
"""

from __future__ import annotations

from adalora.errors import UserError
from adalora.glue import TaskData
from adalora.training.parser import RunArguments

__all__ = ["check_combination"]


def check_combination(arguments: RunArguments, data: TaskData) -> None:
    """Refuse what would train nothing, or something else than it says.

    Raises:
        UserError: naming the flags.
    """
    model, method, training = arguments.model, arguments.method, arguments.training
    whole = not (method.apply_lora or method.apply_adapter or method.apply_bitfit)
    if model.base_dtype != "float32" and (whole or method.apply_bitfit):
        trained = (
            "BitFit trains its biases" if method.apply_bitfit else "full fine-tuning trains it"
        )
        raise UserError(
            f"--base_dtype {model.base_dtype} is for weights that stay as they are, and {trained}: "
            "small steps would be lost. Leave it out; --bf16 computes in half precision."
        )
    if method.allocates and not training.keeps_gradients:
        raise UserError(
            f"--optim {training.optimizer_name} uses up the gradients during the backward pass, "
            "and the allocator reads them after the step; choose another, such as adamw_torch."
        )
    if method.allocates and training.early_stopping_patience and not method.final_warmup:
        raise UserError(
            "--early_stopping_patience counts evaluations at the final budget, and --final_warmup "
            "0 leaves none; give it steps, or a fraction of the run such as 0.3."
        )
    smoothing = training.label_smoothing_factor
    if smoothing and data.is_regression:
        raise UserError(
            f"--label_smoothing_factor {smoothing} is for classes, and this task asks for a number."
        )
    if method.reg_loss_wgt and data.is_regression:
        raise UserError(
            f"--reg_loss_wgt {method.reg_loss_wgt} compares two distributions over classes, and "
            "this task asks for a number."
        )
    if smoothing and method.reg_loss_wgt:
        raise UserError(
            f"--label_smoothing_factor {smoothing} and --reg_loss_wgt {method.reg_loss_wgt} each "
            "bring a loss of their own; choose one."
        )

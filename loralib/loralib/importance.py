"""How much each triplet matters: averages of sensitivity and uncertainty, and the score.

AdaLoRA (arXiv 2303.10512) eq. 9-13. All matrices are handled together by list operations, and
nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .svd import SVDLinear

FACTORS = ("lora_A", "lora_E", "lora_B")


class Importance:
    """Running averages over the factors of a set of SVD layers.

    Args:
        layers: module path -> layer; the order decides the order of the scores.
        beta1: average of the sensitivity (eq. 11).
        beta2: average of its uncertainty (eq. 12).
    """

    def __init__(self, layers: Mapping[str, SVDLinear], beta1: float, beta2: float) -> None:
        self.names = [f"{path}.{factor}" for path in layers for factor in FACTORS]
        self.beta1, self.beta2 = beta1, beta2
        parameters = self._parameters(layers)
        # One precision for all, float32 at least: products of small numbers vanish in half.
        dtype = torch.float32
        for parameter in parameters:
            dtype = torch.promote_types(dtype, parameter.dtype)
        self.sensitivity = [torch.zeros_like(p, dtype=dtype) for p in parameters]
        self.uncertainty = [torch.zeros_like(average) for average in self.sensitivity]

    @staticmethod
    def _parameters(layers: Mapping[str, SVDLinear]) -> list[Tensor]:
        return [getattr(layer, factor) for layer in layers.values() for factor in FACTORS]

    @torch.no_grad()
    def update(self, layers: Mapping[str, SVDLinear]) -> Tensor | None:
        """Take in the gradients of one step (eq. 10-12), with the weights after the step.

        A step with a gradient that is not finite leaves every average exactly as it was.

        Returns:
            Scalar bool on the device, whether the step counted; None if a gradient is missing.
        """
        parameters = self._parameters(layers)
        gradients = [p.grad for p in parameters if p.grad is not None]
        if len(gradients) < len(parameters):
            return None
        largest = torch._foreach_norm(gradients, ord=float("inf"))
        finite = torch.isfinite(torch.stack([norm.float() for norm in largest])).all()
        now = [
            p.to(average.dtype) * gradient.to(average.dtype)
            for p, gradient, average in zip(parameters, gradients, self.sensitivity, strict=True)
        ]
        torch._foreach_abs_(now)
        for value in now:
            # Infinity times the zero weight of a rejected step would be NaN.
            value.nan_to_num_(0.0, 0.0, 0.0)
        self._average(self.sensitivity, now, finite, 1 - self.beta1)
        torch._foreach_sub_(now, self.sensitivity)
        torch._foreach_abs_(now)
        self._average(self.uncertainty, now, finite, 1 - self.beta2)
        return finite

    @staticmethod
    def _average(
        averages: list[Tensor], values: list[Tensor], finite: Tensor, weight: float
    ) -> None:
        """averages += weight * (values - averages) where ``finite``, else exactly nothing."""
        change = torch._foreach_sub(values, averages)
        # Multiplied in the averages' own precision: a float32 weight would cost float64 its digits.
        torch._foreach_mul_(change, finite.to(change[0].dtype) * weight)
        torch._foreach_add_(averages, change)

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Score of every triplet (eq. 9 and 13), [triplets], layer after layer.

        Importance of the singular value, plus the mean over its row of Q and its column of P.
        """
        products = torch._foreach_mul(self.sensitivity, self.uncertainty)
        parts = []
        for index in range(0, len(products), len(FACTORS)):
            right, value, left = products[index : index + len(FACTORS)]
            parts.append(value.flatten() + (right.mean(dim=1) + left.mean(dim=0)))
        return torch.cat(parts)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages by parameter name."""
        return {
            "sensitivity": dict(zip(self.names, self.sensitivity, strict=True)),
            "uncertainty": dict(zip(self.names, self.uncertainty, strict=True)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the averages over.

        Raises:
            ValueError: if a name is missing, unknown, or of another shape.
        """
        for kind, averages in (
            ("sensitivity", self.sensitivity),
            ("uncertainty", self.uncertainty),
        ):
            stored = state[kind]
            if set(stored) != set(self.names):
                different = sorted(set(stored) ^ set(self.names))
                raise ValueError(
                    f"the stored {kind} is of other parameters: {len(different)} differ, "
                    f"the first is {different[0]}"
                )
            for name, average in zip(self.names, averages, strict=True):
                if stored[name].shape != average.shape:
                    raise ValueError(
                        f"the stored {kind} of {name} has shape {list(stored[name].shape)}, "
                        f"expected {list(average.shape)}"
                    )
                average.copy_(stored[name])

"""How much each triplet matters: averages of sensitivity and uncertainty, and the score.

AdaLoRA (arXiv 2303.10512) eq. 9-13. Matrices of one shape are handled together, and nothing here
waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .ranked import RankedLayer, Stacks, factors_of

SCORES = ("uncertainty", "sensitivity", "magnitude")


class _Averages:
    """Sensitivity, and uncertainty unless it is not asked for, of one factor of every layer."""

    def __init__(
        self, parameters: Sequence[Tensor], dtype: torch.dtype, *, uncertainty: bool
    ) -> None:
        self.stacks, self.dtype = Stacks(parameters), dtype
        stacked = self.stacks.stack(parameters)
        self.sensitivity = [torch.zeros_like(group, dtype=dtype) for group in stacked]
        self.uncertainty = [torch.zeros_like(a) for a in self.sensitivity] if uncertainty else None

    def products(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """|weight · gradient| (eq. 10), per group."""
        weights, slopes = (
            [stacked.to(self.dtype) for stacked in self.stacks.stack(tensors)]
            for tensors in (parameters, gradients)
        )
        products = torch._foreach_mul(weights, slopes)
        torch._foreach_abs_(products)
        return list(products)

    def update(self, now: list[Tensor], weight1: Tensor, weight2: Tensor) -> None:
        """Eq. 11 and 12; a weight of zero leaves an average exactly as it was."""
        for value in now:
            # Zero times infinity would be NaN.
            value.nan_to_num_(0.0, 0.0, 0.0)
        torch._foreach_lerp_(self.sensitivity, now, [weight1] * len(now))
        if self.uncertainty is None:
            return
        torch._foreach_sub_(now, self.sensitivity)
        torch._foreach_abs_(now)
        torch._foreach_lerp_(self.uncertainty, now, [weight2] * len(now))

    def scores(self, across: int | None) -> Tensor:
        """s(·) of eq. 9, mean over dimension ``across``, group after group.

        Sensitivity · uncertainty (eq. 13), or sensitivity alone.
        """
        entries = self.sensitivity
        if self.uncertainty is not None:
            entries = [s * u for s, u in zip(entries, self.uncertainty, strict=True)]
        if across is not None:
            entries = [entry.mean(dim=across) for entry in entries]
        return torch.cat([entry.flatten() for entry in entries])


class Importance:
    """Running averages over the factors of a set of layers.

    Args:
        layers: module path -> layer, of one form; the order decides the order of the scores.
        beta1: average of the sensitivity (eq. 11).
        beta2: average of its uncertainty (eq. 12).
        uncertainty: whether the score is sensitivity · uncertainty (eq. 13). Without it, the score
            is the average sensitivity of eq. 11 ("s = sensitivity only" of table 4, where the paper
            does not say which of eq. 10 and 11 it means; the raw one would be a single batch's).
    """

    def __init__(
        self,
        layers: Mapping[str, RankedLayer],
        beta1: float,
        beta2: float,
        *,
        uncertainty: bool = True,
    ) -> None:
        self.paths = list(layers)
        self.factors = factors_of(layers)
        self.kinds = ("sensitivity", "uncertainty") if uncertainty else ("sensitivity",)
        self.beta1, self.beta2 = beta1, beta2
        parameters = {factor: self._parameters(layers, factor) for factor in self.factors}
        # One precision for all, float32 at least: products of small numbers vanish in half.
        self.dtype = torch.float32
        for parameter in (p for group in parameters.values() for p in group):
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)
        self.averages = {
            factor: _Averages(group, self.dtype, uncertainty=uncertainty)
            for factor, group in parameters.items()
        }
        device = parameters["lora_A"][0].device
        ranks = [layer.r for layer in layers.values()]
        self._order = {f: a.stacks.order(ranks).to(device) for f, a in self.averages.items()}

    @staticmethod
    def _parameters(layers: Mapping[str, RankedLayer], factor: str) -> list[Tensor]:
        return [getattr(layer, factor) for layer in layers.values()]

    @torch.no_grad()
    def update(
        self, layers: Mapping[str, RankedLayer], other_gradients: Sequence[Tensor] = ()
    ) -> Tensor | None:
        """Take in the gradients of one step (eq. 10-12), with the weights after the step.

        A step with a gradient that is not finite leaves every average exactly as it was.

        Args:
            layers: those of the constructor.
            other_gradients: of the step's other parameters. One that is not finite means that the
                optimizer made no step: the gradient scaler skipped it, or clipping by an infinite
                norm set the layers' own gradients to zero.

        Returns:
            Scalar bool on the device, whether the step counted; None if a gradient is missing.
        """
        now: dict[str, list[Tensor]] = {}
        for factor, averages in self.averages.items():
            parameters = self._parameters(layers, factor)
            gradients = [p.grad for p in parameters if p.grad is not None]
            if len(gradients) < len(parameters):
                return None
            now[factor] = averages.products(parameters, gradients)
        # The product with a gradient that is not finite is not finite either.
        everything = [value for values in now.values() for value in values]
        everything += [gradient.to(self.dtype) for gradient in other_gradients]
        largest = torch.stack(torch._foreach_norm(everything, ord=float("inf")))
        finite = torch.isfinite(largest).all()
        # In the averages' own precision: a float32 weight would cost float64 its digits.
        counts = finite.to(self.dtype)
        weight1, weight2 = counts * (1 - self.beta1), counts * (1 - self.beta2)
        for factor, averages in self.averages.items():
            averages.update(now[factor], weight1, weight2)
        return finite

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Score of every triplet (eq. 9 and 13), [triplets], layer after layer.

        Importance of the singular value, plus the mean over its row of Q and its column of P; a
        doublet has no singular value of its own.
        """
        vectors = self._scores("lora_A", across=2) + self._scores("lora_B", across=1)
        if "lora_E" not in self.factors:
            return vectors
        return self._scores("lora_E", across=None) + vectors

    def _scores(self, factor: str, *, across: int | None) -> Tensor:
        return self.averages[factor].scores(across).index_select(0, self._order[factor])

    def _named(self, kind: str) -> dict[str, Tensor]:
        """The averages of one kind by parameter name, as views."""
        views = {
            factor: averages.stacks.views(getattr(averages, kind))
            for factor, averages in self.averages.items()
        }
        return {
            f"{path}.{factor}": views[factor][index]
            for index, path in enumerate(self.paths)
            for factor in self.factors
        }

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages by parameter name."""
        return {kind: self._named(kind) for kind in self.kinds}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the averages over.

        Raises:
            ValueError: if a name is missing, unknown, or of another shape.
        """
        for kind in self.kinds:
            stored, own = state[kind], self._named(kind)
            if different := sorted(set(stored) ^ set(own)):
                raise ValueError(
                    f"the stored {kind} is of other parameters: {len(different)} differ, "
                    f"the first is {different[0]}"
                )
            for name, average in own.items():
                if stored[name].shape != average.shape:
                    raise ValueError(
                        f"the stored {kind} of {name} has shape {list(stored[name].shape)}, "
                        f"expected {list(average.shape)}"
                    )
                average.copy_(stored[name])


class Magnitude:
    """|λ| of every triplet as the last step counted left it; the interface is ``Importance``'s.

    A doublet's singular value is the product of the norms of its column and its row.

    Args:
        layers: module path -> layer; the order decides the order of the scores.
    """

    def __init__(self, layers: Mapping[str, RankedLayer]) -> None:
        self._has_values = "lora_E" in factors_of(layers)
        self._rows = Stacks([layer.lora_A for layer in layers.values()])
        self._columns = Stacks([layer.lora_B for layer in layers.values()])
        self._values = self._read(layers)

    @torch.no_grad()
    def _read(self, layers: Mapping[str, RankedLayer]) -> Tensor:
        every = layers.values()
        if self._has_values:
            values = torch.cat([layer.get_parameter("lora_E") for layer in every]).abs().squeeze(1)
        else:
            rows = self._norms(self._rows, [layer.lora_A for layer in every], dim=2)
            values = rows * self._norms(self._columns, [layer.lora_B for layer in every], dim=1)
        return values.to(torch.promote_types(values.dtype, torch.float32))

    @staticmethod
    def _norms(stacks: Stacks, factors: Sequence[Tensor], *, dim: int) -> Tensor:
        norms = [torch.linalg.vector_norm(group, dim=dim) for group in stacks.stack(factors)]
        return torch.cat(stacks.views(norms))

    @torch.no_grad()
    def update(
        self, layers: Mapping[str, RankedLayer], other_gradients: Sequence[Tensor] = ()
    ) -> Tensor | None:
        """Take in the values after a step; ones that are not finite leave all as they were.

        ``other_gradients`` are not used: a skipped step leaves the values as they are. Returned is
        whether the step counted, bool [] on the device.
        """
        values = self._read(layers)
        finite = torch.isfinite(values).all()
        self._values = torch.where(finite, values, self._values)
        return finite

    def scores(self) -> Tensor:
        """Score of every triplet, [triplets], layer after layer."""
        return self._values.clone()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The values under one name."""
        return {"magnitude": {"all": self._values}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the values over.

        Raises:
            ValueError: if there are more or fewer than the model has triplets.
        """
        stored = state["magnitude"]["all"]
        if stored.shape != self._values.shape:
            raise ValueError(
                f"the stored magnitudes are {list(stored.shape)}, expected "
                f"{list(self._values.shape)}"
            )
        self._values.copy_(stored)


def make_importance(
    importance_score: str, layers: Mapping[str, RankedLayer], beta1: float, beta2: float
) -> Importance | Magnitude:
    """What judges the triplets of ``layers``, by its name in ``SCORES``."""
    if importance_score == "magnitude":
        return Magnitude(layers)
    return Importance(layers, beta1, beta2, uncertainty=importance_score == "uncertainty")

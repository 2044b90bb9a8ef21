"""The plainest score of a triplet: the size of its singular value ("S = |λ|" of table 4).

AdaLoRA (arXiv 2303.10512) §3.2. It needs no gradient and no averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .ranked import RankedLayer, factors_of
from .stacks import Stacks


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
        if self._has_values:
            every = torch.cat([layer.get_parameter("lora_E") for layer in layers.values()])
            values = every.abs().squeeze(1)
        else:
            rows = self._norms(self._rows, [layer.lora_A for layer in layers.values()], dim=2)
            columns = self._norms(self._columns, [layer.lora_B for layer in layers.values()], dim=1)
            values = rows * columns
        return values.to(torch.promote_types(values.dtype, torch.float32))

    @staticmethod
    def _norms(stacks: Stacks, factors: Sequence[Tensor], *, dim: int) -> Tensor:
        norms = [torch.linalg.vector_norm(group, dim=dim) for group in stacks.stack(factors)]
        return torch.cat(stacks.views(norms))

    @torch.no_grad()
    def update(
        self, layers: Mapping[str, RankedLayer], beside: Sequence[Tensor] = ()
    ) -> Tensor | None:
        """Take in the values after a step; ones that are not finite leave all as they were.

        Args:
            layers: as given to the constructor.
            beside: not looked at: a step passed over leaves the values right.

        Returns:
            Scalar bool on the device, whether the step counted.
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

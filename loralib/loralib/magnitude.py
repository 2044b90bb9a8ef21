"""The plainest score of a triplet: the size of its singular value ("S = |λ|" of table 4).

AdaLoRA (arXiv 2303.10512) §3.2. It needs no gradient and no averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .ranked import RankedLayer, factors_of


class Magnitude:
    """|λ| of every triplet as the last step counted left it; the interface is ``Importance``'s.

    A doublet's singular value is the product of the norms of its column and its row.

    Args:
        layers: module path -> layer; the order decides the order of the scores.
    """

    def __init__(self, layers: Mapping[str, RankedLayer]) -> None:
        self._values = self._read(layers)

    @staticmethod
    @torch.no_grad()
    def _read(layers: Mapping[str, RankedLayer]) -> Tensor:
        if "lora_E" in factors_of(layers):
            values = torch.cat([layer.get_parameter("lora_E") for layer in layers.values()])
            values = values.abs().squeeze(1)
        else:
            rows = [torch.linalg.vector_norm(layer.lora_A, dim=1) for layer in layers.values()]
            columns = [torch.linalg.vector_norm(layer.lora_B, dim=0) for layer in layers.values()]
            values = torch.cat(rows) * torch.cat(columns)
        return values.to(torch.promote_types(values.dtype, torch.float32))

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

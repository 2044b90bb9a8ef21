"""What is exported: the artefact of a run, loaded in full precision and looked over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from adalora.checkpoints import Artefact, load_artefact
from adalora.checkpoints.files import listed, not_finite
from adalora.errors import UserError

__all__ = ["load_source"]


def load_source(folder: Path, *, base_model: str | None = None) -> Artefact:
    """The artefact in ``folder``, a base of half precision widened to float32.

    Rounding a merged weight to half precision would drop most of a small update, and the widened
    base is the same numbers.

    Raises:
        UserError: as ``load_artefact``; or if a number in it is NaN or infinite.
    """
    artefact = load_artefact(folder, base_model=base_model)
    model = artefact.model
    if artefact.description.torch_dtype in (torch.float16, torch.bfloat16):
        model = model.float()
    broken = not_finite(model.named_parameters())
    if broken:
        raise UserError(
            f"The model in {folder} cannot be exported: {listed(broken)} holds NaN or infinity. "
            "Its training diverged or its files were changed; export an earlier run."
        )
    return replace(artefact, model=model)

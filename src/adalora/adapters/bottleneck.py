"""Bottleneck adapters as the original places them: Houlsby's and Pfeiffer's.

Houlsby (arXiv 1902.00751): after the attention's and the feed-forward's output, before the residual
sum and its LayerNorm, activation swish. Pfeiffer (arXiv 2005.00247, as in the original's fork):
after the feed-forward only, on the normalised sum, activation ReLU, followed by the same LayerNorm
again. Departure: the up-projection starts at zero, so that the model starts as the base; the
original draws both projections as ``nn.Linear`` does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adalora.adapters.head import base_path
from adalora.errors import UserError
from loralib.base import adapter_dtype

AdapterType = Literal["houlsby", "pfeiffer"]
ADAPTER_TYPES = get_args(AdapterType)

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"houlsby": F.silu, "pfeiffer": F.relu}
# The output blocks, each a dense layer, a dropout and a LayerNorm over the residual sum.
_PLACES = {"houlsby": r"(attention\.)?output", "pfeiffer": r"output"}


class Bottleneck(nn.Module):
    """``adapter_B(activation(adapter_A(x))) + residual``.

    Parameters: ``adapter_A`` [size, width] and ``adapter_B`` [width, size] with biases, named as in
    the original; ``adapter_B`` starts at zero.

    ``adapter_type`` decides the activation. The input is cast to the parameters' ``dtype``, and the
    output has the residual's.
    """

    def __init__(
        self,
        width: int,
        size: int,
        adapter_type: AdapterType,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.adapter_type = adapter_type
        self.adapter_A = nn.Linear(width, size, device=device, dtype=dtype)
        self.adapter_B = nn.Linear(size, width, device=device, dtype=dtype)
        nn.init.zeros_(self.adapter_B.weight)
        nn.init.zeros_(self.adapter_B.bias)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map [..., width] and a residual of the same shape to [..., width]."""
        hidden = _ACTIVATIONS[self.adapter_type](self.adapter_A(x.to(self.adapter_A.weight.dtype)))
        output: Tensor = self.adapter_B(hidden).to(residual.dtype) + residual
        return output


class OutputWithBottleneck(nn.Module):
    """An output block of a BERT-like layer with a bottleneck adapter in it.

    Holds the block's own modules (``dense``, ``dropout`` and ``LayerNorm``) under their own names,
    so that every path of the base stays.
    """

    def __init__(self, block: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.dense: Any = block.dense
        self.LayerNorm: Any = block.LayerNorm
        self.dropout: Any = block.dropout
        self.adapter = adapter

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """Project, adapt, add the residual, normalise: [..., width] of both arguments."""
        hidden = self.dropout(self.dense(hidden_states))
        if self.adapter.adapter_type == "houlsby":
            hidden = self.adapter(hidden, residual=hidden)
        else:
            hidden = self.adapter(self.LayerNorm(hidden + input_tensor), residual=hidden)
        output: Tensor = self.LayerNorm(hidden + input_tensor)
        return output


def add_bottleneck(model: nn.Module, *, adapter_type: AdapterType, adapter_size: int) -> list[str]:
    """Put bottleneck adapters into every encoder layer of ``model``.

    Args:
        model: a loaded BERT-like model (DeBERTa v1 to v3, BERT, (XLM-)RoBERTa, CamemBERT, ELECTRA).
        adapter_type: ``houlsby`` (two per layer) or ``pfeiffer`` (one per layer).
        adapter_size: size of the bottleneck, at least 1.

    Returns:
        Paths of the adapters, in model order.

    Raises:
        UserError: if a value is out of its range, the model already has bottleneck adapters, or
            its layers have no output blocks of the expected form.
    """
    if adapter_type not in _PLACES:
        raise UserError(f"adapter_type {adapter_type!r} is unknown; choose houlsby or pfeiffer.")
    if adapter_size < 1:
        raise UserError(f"adapter_size must be at least 1, and is {adapter_size}.")
    if present := list(bottlenecks(model)):
        raise UserError(
            f"The model already has bottleneck adapters, the first at {present[0]}; load the base "
            "model again to adapt it differently."
        )
    base = base_path(model)
    prefix = re.escape(f"{base}.") if base else ""
    pattern = re.compile(rf"{prefix}encoder\.layer\.\d+\.{_PLACES[adapter_type]}")
    blocks = {
        path: module
        for path, module in model.named_modules()
        if pattern.fullmatch(path) and _is_output_block(module)
    }
    if not blocks:
        raise UserError(
            f"{type(model).__name__} has no encoder.layer.*.output block with dense, dropout and "
            "LayerNorm, where bottleneck adapters go; take --apply_lora for it."
        )
    for path, block in blocks.items():
        dense: Any = block.dense
        adapter = Bottleneck(
            dense.out_features,
            adapter_size,
            adapter_type,
            device=dense.weight.device,
            dtype=adapter_dtype(dense.weight),
        )
        wrapped = OutputWithBottleneck(block, adapter)
        parent_path, _, name = path.rpartition(".")
        wrapped.train(block.training)
        setattr(model.get_submodule(parent_path), name, wrapped)
    return [f"{path}.adapter" for path in blocks]


def bottlenecks(model: nn.Module) -> dict[str, Bottleneck]:
    """Path -> bottleneck adapter, in model order."""
    return {p: module for p, module in model.named_modules() if isinstance(module, Bottleneck)}


def _is_output_block(module: nn.Module) -> bool:
    return isinstance(getattr(module, "dense", None), nn.Linear) and all(
        isinstance(getattr(module, name, None), nn.Module) for name in ("dropout", "LayerNorm")
    )

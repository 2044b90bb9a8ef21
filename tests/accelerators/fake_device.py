"""Whole training steps on an accelerator that does not exist, as a program of its own.

A Python backend under PyTorch's ``PrivateUse1`` key gives a device ("accel") whose tensors have
shapes, dtypes and a place, and no values (``FakeTensorMode``); its autocast follows CUDA's lists.
A step fails where tensors of two devices meet, where a dtype is wrong under autocast, and where the
host would read a value, which on a real device is a wait. Copies from the host within a step are
counted too. What the collator makes (the packing) is handed over as it would arrive.

    python -m tests.accelerators.fake_device NAME ...     a line of JSON per case, all without names
"""

from __future__ import annotations

import collections
import json
import math
import re
import sys
import traceback
import warnings
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from tests.accelerators.cuda_autocast import register_policy
from tests.accelerators.steps import (
    METHODS,
    MNLI,
    Case,
    batch,
    build,
    new_optimizer,
    training_step,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)
from transformers.models.deberta_v2 import modeling_deberta_v2

from adalora.pretrained.deberta.encoder import UnpaddedDebertaV2Model
from adalora.pretrained.deberta.packing import Packing
from adalora.runtime.device_costs import is_view

__all__ = ["CASES", "COUNTED", "DEVICE"]

DEVICE = "accel"
_WAYS = [("deberta", True), ("deberta", False), ("bert", True), ("bert", False)]
_LOW = [torch.bfloat16, torch.float16, None]
_EXTRAS: list[dict[str, Any]] = [
    {"accumulation": 2},
    {"checkpointing": True},
    {"base_dtype": torch.bfloat16},
    {"smoothing": 0.1},
    {"consistency": 1.0},
]
#: Every two of method, way and dtype meet, and every extra meets every way over one of the two
#: widest methods; test_cuda_autocast.py has the full product, with values. And MPNet, whose
#: attention has a bias that full fine-tuning trains.
CASES = {
    str(case): case
    for case in [
        *(
            Case(method, encoder=encoder, unpadded=unpadded, low=_LOW[(row + column) % 3], layers=1)
            for row, method in enumerate(METHODS)
            for column, (encoder, unpadded) in enumerate(_WAYS)
        ),
        *(
            replace(
                Case(
                    ("svd", "dora")[(row + column) % 2],
                    encoder=encoder,
                    unpadded=unpadded,
                    layers=1,
                ),
                **extra,
            )
            for row, extra in enumerate(_EXTRAS)
            for column, (encoder, unpadded) in enumerate(_WAYS)
        ),
        *(
            Case(method, encoder="mpnet", low=low, layers=1)
            for method, low in product(("svd", "full"), _LOW)
        ),
        *(Case(method, late=True, layers=1) for method in ("frd", "svd")),
    ]
}


_DEEP = Case("svd", base_dtype=torch.bfloat16, layers=12, lengths=MNLI, dropout=0.1)
#: Of the base model's depth, to count launches; these do not depend on its width.
COUNTED = {
    "32 texts like MNLI's": _DEEP,
    "32 texts of 320 tokens": replace(_DEEP, lengths=(320,) * 32),
    "BERT, 32 texts like MNLI's": replace(_DEEP, encoder="bert"),
}


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    """What autocast and checkpointing ask a backend for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def is_bf16_supported(self, *_: Any) -> bool:
        return True

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, *_: Any) -> None:
        pass


#: Operators that start no kernel, beside views.
_NO_KERNEL = re.compile(
    r"prim\.|aten\.(promote_types|empty|new_empty|detach|_unsafe_view|lift_fresh|_reshape_alias"
    r"|alias|is_same_size|set_|resize_|_local_scalar_dense)"
)
#: Tensors that one kernel of ``torch._foreach_*`` takes, by the lists it works on.
_TENSORS_A_KERNEL = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


def _launches(function: Any, args: Any) -> int:
    """Kernels that CUDA would start, by a model: one for an operator, none for a view."""
    name = str(function)
    if is_view(function) or _NO_KERNEL.match(name):
        return 0
    lists = [value for value in args if isinstance(value, list | tuple) and value]
    lists = [value for value in lists if isinstance(value[0], Tensor)]
    if name.startswith(("aten._foreach", "aten._fused")):
        depth = 4 if "_fused" in name else min(len(lists), 5)
        elements = sum(math.ceil(tensor.numel() / 2**16) for tensor in lists[0])
        return max(math.ceil(len(lists[0]) / _TENSORS_A_KERNEL[depth]), math.ceil(elements / 320))
    if name.startswith(("aten.sort", "aten.topk", "aten.kthvalue")):
        return 3
    return 1


class _Watch(TorchDispatchMode):
    """Counts what is dispatched and the kernels that it starts, and names the places where data of
    the host enters the device."""

    def __init__(self) -> None:
        super().__init__()
        self.dispatched = self.launches = 0
        self.copies: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.dispatched += 1
        self.launches += _launches(function, args)
        result = function(*args, **(kwargs or {}))
        source = next((value for value in args if isinstance(value, Tensor)), None)
        if (
            isinstance(result, Tensor)
            and source is not None
            and (source.device.type, result.device.type) == ("cpu", DEVICE)
            and source.dim() > 0
        ):
            self.copies[_place()] += 1
        return result


def _place() -> str:
    """The innermost line of the project in the stack."""
    for frame in reversed(traceback.extract_stack()):
        for root in ("/src/adalora/", "/loralib/loralib/"):
            if root in frame.filename:
                return f"{frame.filename.split(root)[1]}:{frame.lineno}"
    return "elsewhere"


def _there(tensor: Any) -> Any:
    """A tensor of the same shape and dtype on the device; None stays None."""
    if tensor is None:
        return None
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def _move(model: nn.Module) -> None:
    """Put a model made on the host on the device (``Module.to`` cannot swap fake parameters)."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                moved = nn.Parameter(_there(parameter), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in list(module._buffers.items()):
            module._buffers[name] = _there(buffer)


def _hand_over_the_packing(packing: Packing) -> None:
    """Let the encoder find what the collator sends, and the distances as kept from before."""
    with unset_fake_temporarily():
        index = packing.index()
    arrived = packing.with_index(_there(index))

    def distances(self: Any, length: int, device: torch.device) -> tuple[int, int, Tensor]:
        with unset_fake_temporarily():
            first, last, rows = host(self, length, torch.device("cpu"))
        return first, last, _there(rows)

    host = UnpaddedDebertaV2Model._distances
    Packing.for_batch = lambda *_: arrived  # type: ignore[method-assign]
    UnpaddedDebertaV2Model._distances = distances  # type: ignore[method-assign]


def _relative_positions(query: Tensor, key: Tensor, *_: Any, **__: Any) -> Tensor:
    """In the place of the installed model's: a scripted function takes no fake tensors."""
    return _there(torch.empty(1, query.size(-2), key.size(-2), dtype=torch.long, device="meta"))


def _step(case: Case) -> dict[str, Any]:
    with unset_fake_temporarily():
        inputs = batch(case.lengths)
        packing = Packing.of(inputs["attention_mask"])
    assert packing is not None
    model, adaptation = build(case, prepare=_move)
    kept = (Packing.for_batch, UnpaddedDebertaV2Model._distances)
    if case.unpadded:
        _hand_over_the_packing(packing)
    watch = _Watch()
    try:
        optimizer = new_optimizer(model)
        here = {name: _there(value) for name, value in inputs.items()}
        if case in COUNTED.values():
            # A step that is not the first, which makes the optimizer's state.
            training_step(model, adaptation, here, case, number=4, optimizer=optimizer)
            optimizer.zero_grad()
        with watch:
            step = training_step(model, adaptation, here, case, optimizer=optimizer)
        loss, gradients = step
        where = {loss.device.type, *(gradient.device.type for gradient in gradients.values())}
        return {
            "passed": where == {DEVICE},
            "why": "" if where == {DEVICE} else f"results on {sorted(where)}",
            "dispatched": watch.dispatched,
            "launches": watch.launches,
            "copies": dict(watch.copies),
        }
    except Exception as error:  # the point of the program is to say which
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "/torch/" not in frame.filename and not frame.filename.endswith("fake_device.py")
        ]
        places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames[-4:]]
        return {"passed": False, "why": f"{type(error).__name__}: {str(error)[:300]} at {places}"}
    finally:
        Packing.for_batch, UnpaddedDebertaV2Model._distances = kept  # type: ignore[method-assign]


def main(names: list[str]) -> None:
    """Take one step of each case and print what came of it."""
    warnings.filterwarnings("ignore")
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=_Backend())
    modeling_deberta_v2.build_relative_position = _relative_positions
    # As CUDA's tensors, these go through ``torch._foreach_*`` where a caller leaves it to torch.
    _foreach_utils._foreach_supported_types.append(FakeTensor)
    library = torch.library.Library("aten", "IMPL")
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    register_policy(library, "AutocastPrivateUse1", DEVICE, low=True)
    known = CASES | COUNTED
    for name in names or known:
        with FakeTensorMode(allow_non_fake_inputs=False):
            print(json.dumps({"case": name, **_step(known[name])}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

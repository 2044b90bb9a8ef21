"""What a step asks of a device: kernels launched, and values that the host waits for.

Counted from PyTorch's dispatcher, on any device and without a profiler, so that what only costs on
an accelerator can be seen on a machine that has none.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that allocate or describe, and compute nothing.
_NOTHING = frozenset(
    f"aten.{name}"
    for name in (
        "empty.memory_format",
        "empty_like.default",
        "empty_strided.default",
        "new_empty.default",
        "new_empty_strided.default",
        "detach.default",
        "lift_fresh.default",
        "_unsafe_view.default",
        "_reshape_alias.default",
        "set_.source_Storage",
        "resize_.default",
        "result_type.Tensor",
    )
)
#: Operations whose result the host must have before it can go on: a value, or a size.
_READS = frozenset(
    f"aten.{name}"
    for name in (
        "_local_scalar_dense.default",
        "equal.default",
        "is_nonzero.default",
        "nonzero.default",
        "masked_select.default",
        "_unique2.default",
        "unique_dim.default",
        "unique_consecutive.default",
        "repeat_interleave.Tensor",
    )
)
#: Operations that need the number of hits where an index is a mask.
_INDEXED = frozenset(
    f"aten.{name}" for name in ("index.Tensor", "index_put.default", "index_put_.default")
)
#: Tensors of a list that one kernel of torch's multi-tensor operations takes.
_PER_LIST_KERNEL = 48


class DeviceCosts(TorchDispatchMode):
    """Counts what is dispatched within ``with DeviceCosts() as costs:``.

    An operation that is no view and no allocation counts as one launch, one over lists of tensors
    as one for each 48 of them. Real numbers differ a little: a product may take two kernels, and an
    operation of this project is one launch here however many kernels it has.

    Attributes:
        launches: operation -> kernels.
        reads: operation -> times that the host would wait for its result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = str(function)
        reads = name in _READS or (name in _INDEXED and _by_mask(args[1]))
        if reads:
            self.reads[name] += 1
        elif name not in _NOTHING and not is_view(function):
            lists = [len(x) for x in args if isinstance(x, list | tuple) and _of_tensors(x)]
            self.launches[name] += -(-max(lists, default=1) // _PER_LIST_KERNEL)
        result = function(*args, **(kwargs or {}))
        source = args[0] if args else None
        if isinstance(source, Tensor) and source.device.type != "cpu" and _is_on_host(result):
            self.reads[name] += 1
        return result


def _is_on_host(result: Any) -> bool:
    return isinstance(result, Tensor) and result.device.type == "cpu"


def _of_tensors(values: Any) -> bool:
    return bool(values) and isinstance(values[0], Tensor)


def _by_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


@cache
def is_view(function: Any) -> bool:
    """Whether all results share memory with an argument, and nothing is written."""
    returns = function._schema.returns
    return bool(returns) and all(
        value.alias_info is not None and not value.alias_info.is_write for value in returns
    )

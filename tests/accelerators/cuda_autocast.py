"""CUDA's autocast policy, put on the CPU's autocast key: real numbers under an accelerator's rules.

CUDA's autocast gives float32 from softmax, norms and sums; the CPU's keeps the low precision for
softmax. A custom backward that is right on the CPU may thus meet float32 where it expects bfloat16.
The lists are those of ATen/autocast_mode.h (AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE), of
which the operators stand here that a training step may meet.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["FLOAT32", "FLOAT32_RESULT", "LOW", "cuda_autocast", "register_policy"]

#: Operators that compute in the low precision.
LOW = ["matmul", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "linear", "einsum"]
#: Operators that compute in float32.
FLOAT32 = [
    *["layer_norm", "native_layer_norm", "group_norm", "exp", "expm1", "log", "log10", "log2"],
    *["log1p", "rsqrt", "reciprocal", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "nll_loss"],
    *["nll_loss2d", "mse_loss", "kl_div", "l1_loss", "smooth_l1_loss", "cosine_similarity"],
    *["dist", "renorm", "logsumexp", "binary_cross_entropy_with_logits", "norm.Scalar"],
]
#: Operators whose result is float32 unless another dtype is asked for.
FLOAT32_RESULT = [
    *["softmax.int", "log_softmax.int", "cumsum", "cumprod", "sum", "sum.dim_IntList", "prod"],
    *["prod.dim_int", "linalg_vector_norm", "linalg_matrix_norm"],
]


def _operator(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _is_cast(value: Any, device: str) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == device
    )


def _cast(value: Any, dtype: torch.dtype, device: str) -> Any:
    if isinstance(value, list | tuple):
        return [_cast(item, dtype, device) for item in value]
    return value.to(dtype) if _is_cast(value, device) else value


def _kernel(operator: Any, dtype: Callable[[], torch.dtype], keys: Any, device: str) -> Any:
    """All floating-point arguments cast, then the operator without autocast."""

    def kernel(*arguments: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            wanted = dtype()
            return operator(
                *(_cast(value, wanted, device) for value in arguments),
                **{name: _cast(value, wanted, device) for name, value in named.items()},
            )

    return kernel


def _float32_result(operator: Any, keys: Any, device: str) -> Any:
    names = [argument.name for argument in operator._schema.arguments]

    def kernel(*arguments: Any, **others: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            named = dict(zip(names, arguments, strict=False)) | others
            first = named.pop(names[0])
            if _is_cast(first, device) and named.get("dtype") is None:
                named["dtype"] = torch.float32
            return operator(first, **named)

    return kernel


def register_policy(library: torch.library.Library, key: str, device: str, *, low: bool) -> None:
    """Register CUDA's policy under an autocast dispatch key.

    Args:
        library: of ``aten``; the registrations live as long as it does.
        key: for example ``AutocastCPU``.
        device: type of the device that the key belongs to.
        low: also the operators that compute in the low precision (the CPU has them already).
    """
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    kernels = {name: _float32_result(_operator(name), keys, device) for name in FLOAT32_RESULT}
    for name in FLOAT32:
        kernels[name] = _kernel(_operator(name), lambda: torch.float32, keys, device)
    for name in LOW if low else ():
        kernels[name] = _kernel(
            _operator(name), lambda: torch.get_autocast_dtype(device), keys, device
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel takes another's place is the point
        for name, kernel in kernels.items():
            library.impl(name, kernel, key, allow_override=True)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Within it ``torch.autocast("cpu")`` follows CUDA's policy."""
    library = torch.library.Library("aten", "IMPL")
    try:
        register_policy(library, "AutocastCPU", "cpu", low=False)
        yield
    finally:
        library._destroy()

"""The Triton kernels without a GPU, as a program of its own.

    python -m tests.accelerators.triton_kernels interpret    run by Triton's interpreter
    python -m tests.accelerators.triton_kernels compile      for GPUs that are not here

The first prints, for each case, the largest error of the output and of each gradient against the
readable reference in float64, over the largest entry. The second compiles for compute capabilities
8.0 (A100) and 9.0 (H100), and prints what each kernel takes. A line of JSON each.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and sys.argv[1:] == ["interpret"]:
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
from tests.pretrained.deberta.packed_inputs import inputs_of, mask_of, positions_of, reference
from torch import Tensor

from adalora.pretrained.deberta import triton_attention as kernels
from adalora.pretrained.deberta.reference import relative_buckets


@dataclass(frozen=True)
class Case:
    """One batch: lengths of its sequences, head size, dtype, position terms, dropout."""

    lengths: tuple[int, ...]
    size: int = 32
    dtype: torch.dtype = torch.float32
    without: tuple[str, ...] = ()
    dropout: float = 0.0
    buckets: int = 8
    maximum: int = 64

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        terms = "".join(f" without {name}" for name in self.without)
        return f"{self.lengths} {self.size} {dtype}{terms} {self.dropout} {self.buckets}"


CASES = [
    Case((1, 20, 3)),
    Case((33, 3, 1), size=64, dtype=torch.float16),
    Case((18, 5), size=128),
    Case((18, 7), without=("position_key",)),
    Case((18, 7), without=("position_query",)),
    Case((7, 5), without=("position_key", "position_query")),
    # Distances beyond the table, whose last bucket holds many.
    Case((40, 3), buckets=4, maximum=16),
    # Each distance its own bucket.
    Case((12, 5), buckets=-1),
    Case((20, 5), dropout=0.25),
    Case((40, 12), size=64, dtype=torch.float16, dropout=0.25),
]


def run(case: Case, device: str = "cpu") -> dict[str, Any]:
    """Errors of the kernels against the reference, which gets the mask that dropout drew."""
    span = case.buckets if case.buckets > 0 else case.maximum
    mask = mask_of(list(case.lengths))
    drawn = inputs_of(sum(case.lengths), span, case.dtype, width=case.size)
    named: dict[str, Tensor | None] = {
        name: None if name in case.without else x.to(device) for name, x in drawn.items()
    }

    def leaves(dtype: torch.dtype) -> dict[str, Any]:
        return {
            name: None if x is None else x.clone().to(dtype).requires_grad_()
            for name, x in named.items()
        }

    ours, exact = leaves(case.dtype), leaves(torch.float64)
    got = attend(case, span, ours)
    factors = drawn_factors(case, device) if case.dropout else None
    buckets = relative_buckets(max(case.lengths), buckets=case.buckets, max_position=case.maximum)
    expected = reference(exact, mask.to(device), buckets.to(device), factors=factors)
    weights = torch.linspace(-1, 1, got.numel(), dtype=torch.float64, device=device)
    weights = weights.view(got.shape).to(case.dtype)
    (got * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    again = leaves(case.dtype)
    (attend(case, span, again) * weights).sum().backward()
    pairs = {"output": (got, expected)} | {
        name: (ours[name].grad, exact[name].grad) for name, x in named.items() if x is not None
    }
    return {
        "case": str(case),
        "errors": {
            name: ((a.double() - b).abs().max() / b.abs().max()).item()
            for name, (a, b) in pairs.items()
        },
        "same again": all(
            ours[name].grad.equal(again[name].grad) for name, x in named.items() if x is not None
        ),
    }


def attend(case: Case, span: int, leaves: dict[str, Any]) -> Tensor:
    """As ``whole_batch_attention`` calls it on a CUDA device."""
    device = leaves["query"].device
    longest = max(case.lengths)
    starts = torch.tensor((0, *case.lengths), device=device).cumsum(0)
    slots = positions_of(longest, case.buckets, case.maximum, span).index.to(device)
    scale = math.sqrt(case.size * 3)
    query, key, value = (leaves[name] for name in ("query", "key", "value"))
    query = query / scale
    c2p = p2c = None
    if leaves["position_key"] is not None:
        c2p = query.transpose(0, 1) @ leaves["position_key"].transpose(1, 2)
    if leaves["position_query"] is not None:
        p2c = key.transpose(0, 1) @ (leaves["position_query"] / scale).transpose(1, 2)
    seed = torch.tensor([11], device=device)
    inputs = (query, key, value, c2p, p2c, starts, slots, longest, case.dropout, seed)
    output: Tensor = kernels.attention(*inputs)[0]
    return output


def drawn_factors(case: Case, device: str) -> Tensor:
    """[batch, heads, length, length]: what dropout multiplies each probability with.

    Read from the output: with queries and tables of zero every probability is one over the length,
    and with values that are rows of the identity the output shows them one by one.
    """
    assert max(case.lengths) <= case.size
    named = inputs_of(sum(case.lengths), 8, torch.float32, width=case.size)
    leaves: dict[str, Any] = {name: torch.zeros_like(x) for name, x in named.items()}
    rows = torch.cat([torch.arange(length) for length in case.lengths])
    leaves["value"] = torch.eye(case.size)[rows][:, None].expand_as(leaves["value"])
    plain = Case(case.lengths, case.size, dropout=case.dropout)
    shown = attend(plain, plain.buckets, {name: x.to(device) for name, x in leaves.items()})
    longest = max(case.lengths)
    factors = shown.new_zeros(len(case.lengths), shown.shape[1], longest, longest)
    begin = 0
    for number, length in enumerate(case.lengths):
        part = shown[begin : begin + length, :, :length] * length
        factors[number, :, :length, :length] = part.transpose(0, 1)
        begin += length
    return factors.double()


def compile_all() -> None:
    """Every kernel at every tile that is chosen, for two generations of GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    disassembler = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    chosen = [(torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float16, 32), (torch.float32, 64)]
    kinds = [kernels._forward, kernels._backward_queries, kernels._backward_keys, kernels._fold]
    for capability in (80, 90):
        for dtype, size in chosen:
            tile, warps = kernels.tile_of(dtype, size)
            constants = {
                "HAS_C2P": True, "HAS_P2C": True, "HAS_DROPOUT": True, "SIGN": 1,
                "D": size, "TILE": tile,
            }  # fmt: skip
            types = dict.fromkeys(("starts", "slots", "seed", "edges"), "*i64")
            types |= dict.fromkeys(("tokens", "heads", "rows", "longest"), "i32")
            types |= {"lse": "*fp32", "delta": "*fp32", "dropout": "fp32"}
            types |= dict.fromkeys(constants, "constexpr")
            for kernel in kinds:
                names = kernel.arg_names
                signature = {name: types.get(name, pointers[dtype]) for name in names}
                fixed = {name: value for name, value in constants.items() if name in names}
                aligned = {
                    (place,): [["tt.divisibility", 16]]
                    for place, name in enumerate(names)
                    if signature[name].startswith("*")
                }
                compiled = triton.compile(
                    ASTSource(kernel, signature, fixed, aligned),
                    target=GPUTarget("cuda", capability, 32),
                    options={"num_warps": warps, "num_stages": 1},
                )
                with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
                    binary.write(compiled.asm["cubin"])
                    binary.flush()
                    usage = subprocess.run(
                        [disassembler, "--dump-resource-usage", binary.name],
                        capture_output=True,
                        text=True,
                        check=True,
                    ).stdout
                found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
                line = {
                    "kernel": f"{kernel.__name__} sm_{capability} {dtype} {size}",
                    "registers": int(found["REG"]),
                    # Where spilled registers go.
                    "stack": int(found["STACK"]) + int(found["LOCAL"]),
                    "shared": compiled.metadata.shared,
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["compile"]:
        compile_all()
    else:
        for one in CASES:
            print(json.dumps(run(one)), flush=True)

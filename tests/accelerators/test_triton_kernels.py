"""The Triton kernels: by the interpreter, compiled for GPUs that are not here, and on one."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tests.program import lines_of_program

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed, which only Linux has; scripts/test.sh installs it there",
)
#: Largest error over largest entry, against float64.
TOLERANCE = {"float32": 1e-6, "float16": 1e-3}


PROGRAM = "tests.accelerators.triton_kernels"


@pytest.mark.slow
def test_the_interpreter_agrees_with_the_reference() -> None:
    lines = lines_of_program(PROGRAM, "interpret")
    assert len(lines) >= 10
    for line in lines:
        dtype = next(name for name in TOLERANCE if name in line["case"])
        assert max(line["errors"].values()) < TOLERANCE[dtype], line
        assert line["same again"], line


@pytest.mark.slow
def test_kernels_compile_without_spilling() -> None:
    lines = lines_of_program(PROGRAM, "compile")
    assert {line["kernel"].split()[1] for line in lines} == {"sm_80", "sm_90"}
    for line in lines:
        assert line["stack"] == 0, line
        # What a block may take without asking for more, on any GPU.
        assert line["shared"] <= 48 * 1024, line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_agrees_with_the_reference() -> None:
    from tests.accelerators.triton_kernels import CASES, run

    for case in CASES:
        line = run(case, "cuda")
        dtype = str(case.dtype).removeprefix("torch.")
        assert max(line["errors"].values()) < TOLERANCE[dtype], line
        assert line["same again"], line

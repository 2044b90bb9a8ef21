"""The Triton kernels: by the interpreter, compiled for GPUs that are not here, and on one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed, which only Linux has; scripts/test.sh installs it there",
)
#: Largest error over largest entry, against float64.
TOLERANCE = {"float32": 1e-6, "float16": 1e-3}


def lines_of(what: str, project_root: Path) -> list[dict[str, Any]]:
    """The program's lines; interpreting is chosen when Triton is imported, so in a process."""
    paths = [str(project_root / part) for part in ("src", "loralib", ".")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.accelerators.triton_kernels", what],
        cwd=project_root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_interpreter_agrees_with_the_reference(project_root: Path) -> None:
    lines = lines_of("interpret", project_root)
    assert len(lines) >= 10
    for line in lines:
        dtype = next(name for name in TOLERANCE if name in line["case"])
        assert max(line["errors"].values()) < TOLERANCE[dtype], line
        assert line["same again"], line


@pytest.mark.slow
def test_kernels_compile_without_spilling(project_root: Path) -> None:
    lines = lines_of("compile", project_root)
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

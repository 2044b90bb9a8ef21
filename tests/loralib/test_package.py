"""The package by itself: found from the root, light, documented by a program that runs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import loralib


def run(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_the_package_is_found_from_the_root_and_depends_on_torch_alone(project_root: Path) -> None:
    """The root has a folder of the same name, which must not hide it."""
    program = (
        "import sys, loralib; print(loralib.__file__, loralib.SVDLinear)\n"
        "heavy = {'transformers', 'datasets', 'tensorboard', 'adalora'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = run(program, project_root)
    assert result.returncode == 0, result.stderr
    assert str(project_root / "loralib" / "loralib" / "__init__.py") in result.stdout


def test_the_public_names_are_there_once_each() -> None:
    assert len(loralib.__all__) == len(set(loralib.__all__))
    assert all(hasattr(loralib, name) for name in loralib.__all__)
    assert int(loralib.__version__.split(".")[0]) >= 1


def test_the_version_is_read_without_importing_torch(project_root: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from setuptools.config.expand import read_attr\n"
        "print(read_attr('loralib.__version__', {'': '.'}, '.'))"
    )
    result = run(program, project_root / "loralib")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == loralib.__version__


def test_the_originals_modules_are_where_they_were() -> None:
    layers = importlib.import_module("loralib.layers")
    for name in ("LoRALayer", "Linear", "MergedLinear", "Embedding", "Conv2d"):
        assert getattr(layers, name) is getattr(loralib, name)


def test_the_readmes_program_runs(project_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (project_root / "loralib" / "README.md").read_text(encoding="utf-8")
    program = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    exec(program, {"__name__": "__main__"})
    assert "lora_E" in capsys.readouterr().out


def test_a_quickstart_written_for_the_original_runs_unchanged() -> None:
    program = """
import torch, loralib
from loralib import RankAllocator
class BigModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = loralib.SVDLinear(16, 16, r=12)
        self.head = torch.nn.Linear(16, 2)
    def forward(self, x):
        return self.head(self.layer(x))
model = BigModel()
loralib.mark_only_lora_as_trainable(model)
rankallocator = RankAllocator(
    model, lora_r=12, target_rank=8,
    init_warmup=50, final_warmup=150, mask_interval=10,
    total_step=300, beta1=0.85, beta2=0.85,
)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for global_step in range(300):
    x = torch.randn(8, 16)
    loss = torch.nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long())
    loss.backward()
    optimizer.step()
    curr_rank, mask_threshold = rankallocator.update_and_mask(model, global_step)
    optimizer.zero_grad()
assert int((model.layer.lora_E != 0).sum()) == 8
"""
    exec(program, {"__name__": "__main__"})

"""The programs that the documentation shows run as they stand, in a process of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LOOPS = Path(__file__).resolve().parents[1] / "docs" / "loops.md"


def programs() -> dict[str, str]:
    sections = re.split(r"^## ", LOOPS.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {
        section.splitlines()[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
        for section in sections
    }


def test_the_four_loops_are_shown() -> None:
    assert list(programs()) == [
        "Plain PyTorch",
        "Accelerate",
        "A stock Hugging Face Trainer",
        "Lightning",
    ]


@pytest.mark.parametrize("name", list(programs()))
def test_a_shown_loop_prunes_to_its_target(name: str, tmp_path: Path) -> None:
    if name == "Lightning":
        pytest.importorskip("lightning", reason="needs the extra adalora[lightning]")
    script = tmp_path / "program.py"
    script.write_text(programs()[name], encoding="utf-8")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    kept, total = map(int, re.findall(r"triplets kept: (\d+) of (\d+)", result.stdout)[0])
    assert kept * 2 == total

"""The programs that the documentation shows run as they stand."""

from __future__ import annotations

import io
import re
import runpy
from contextlib import chdir, redirect_stdout
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from tests.program import unchanged_process

LOOPS = Path(__file__).resolve().parents[2] / "docs" / "loops.md"


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


@pytest.mark.slow
@pytest.mark.parametrize("name", list(programs()))
def test_a_shown_loop_prunes_to_its_target(name: str, tmp_path: Path) -> None:
    if name == "Lightning":
        pytest.importorskip("lightning", reason="needs the extra adalora[lightning]")
    script = tmp_path / "program.py"
    script.write_text(programs()[name], encoding="utf-8")
    printed = io.StringIO()
    with unchanged_process(), redirect_stdout(printed), chdir(tmp_path):
        AcceleratorState._reset_state(reset_partial_state=True)
        runpy.run_path(str(script), run_name="__main__")
    kept, total = map(int, re.findall(r"triplets kept: (\d+) of (\d+)", printed.getvalue())[0])
    assert kept * 2 == total

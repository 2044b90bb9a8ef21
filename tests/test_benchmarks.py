"""``python -m benchmarks`` tells each figure as it comes, and keeps it when it is stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import __main__ as program
from benchmarks import gpu
from benchmarks.timing import alternate


def test_what_was_measured_is_written_when_the_rest_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> Iterator[dict[str, Any]]:
        yield {"first": 1.5}
        raise KeyboardInterrupt

    file = tmp_path / "results.json"
    monkeypatch.setattr(program.intervals, "measure", stopped)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "intervals", "--output", str(file)])
    with pytest.raises(KeyboardInterrupt):
        program.main()
    written = json.loads(file.read_text())
    assert written["intervals"] == {"first": 1.5}
    assert "torch" in written["machine"]


def test_every_round_is_told_as_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def second() -> None:
        assert "round 1 of 2: one " in capsys.readouterr().err or len(calls) != 3
        calls.append("two")

    seconds = alternate({"one": lambda: calls.append("one"), "two": second}, rounds=2)
    assert calls == ["one", "two"] * 3
    assert list(seconds) == ["one", "two"]
    assert "round 2 of 2: two " in capsys.readouterr().err


@pytest.mark.slow
def test_the_question_for_an_accelerator_is_answered_on_a_cpu_too() -> None:
    told = list(gpu.measure(layers=1, rounds=1, lengths=(8,), tasks=("cola",)))
    assert len(told) == 3
    result = told[-1]
    agreements = [value for name, value in result.items() if name.startswith(gpu.ENCODERS)]
    assert len(agreements) == 4
    assert all(value.startswith("agrees") for value in agreements)
    assert result["32 x 8"]["ms"].keys() == gpu.CONTENDERS.keys()
    costs = result["cola"]["a step"]
    # Ours waits for nothing, and launches less than the peer.
    assert costs["ours"]["waits"] == 0
    assert costs["ours"]["launches"] < costs["PEFT AdaLoRA"]["launches"]

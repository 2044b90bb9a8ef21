"""``adalora doctor`` finds ways that agree, says so, and fails where one does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from adalora.cli import main
from adalora.commands import doctor
from adalora.pretrained import selfcheck


@pytest.mark.slow
def test_it_says_what_is_here_and_that_all_agrees(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "STEPS", 1)
    monkeypatch.setattr(doctor, "LAYERS", {"cpu": 1})
    monkeypatch.setattr(doctor, "LENGTHS", (3, 5))
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("torch", "threads", "deberta-v2", "bert", "agrees", "tokens/s", "--bf16"):
        assert word in shown
    assert "DISAGREES" not in shown
    # No value is read within a step.
    rows = [line.split() for line in shown.splitlines() if line.split()[:1] == ["cpu"]]
    assert [row[-1] for row in rows if row[1:2] in (["float32"], ["bfloat16"])] == ["0", "0"]


@pytest.mark.parametrize("encoder", selfcheck.ENCODERS)
@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=str)
def test_a_way_that_is_a_little_wrong_is_found(
    encoder: str, low: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert selfcheck.compare_ways(encoder, cpu, low).holds
    extra, ours = selfcheck._ENCODERS[encoder]
    monkeypatch.setitem(selfcheck._ENCODERS, encoder, (extra, _wrong(ours)))
    assert not selfcheck.compare_ways(encoder, cpu, low).holds


def _wrong(take_our_way: Callable[[Any], object]) -> Callable[[Any], object]:
    """The way, with its last layer's result a tenth too large."""

    def take(model: Any) -> None:
        take_our_way(model)
        layer = model.base_model.encoder.layer[-1].output.LayerNorm
        layer.register_forward_hook(lambda _module, _inputs, output: output * 1.1)

    return take


def test_advice_names_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    base = doctor.Speed("cpu", "float32", 2, 1000.0, 100, 0)
    half = doctor.Speed("cpu", "bfloat16", 2, 2000.0, 100, 0)
    assert any("2.00 times as fast: use it" in line for line in doctor.advice([cpu], [base, half]))
    slow = replace(half, tokens_per_second=500.0)
    assert any("leave it out" in line for line in doctor.advice([cpu], [base, slow]))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert any("NVIDIA driver" in line for line in doctor.advice([cpu], []))

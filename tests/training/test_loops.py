"""The programs that the documentation shows run as they stand."""

from __future__ import annotations

import io
import re
import runpy
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from tests.program import unchanged_process

from adalora.training.adaptation import AdaLora, AdaLoraSettings

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


def test_a_lightning_loop_that_accumulates_counts_its_steps(
    make_model: Callable[..., Any], examples: list[Any]
) -> None:
    lightning = pytest.importorskip("lightning", reason="needs the extra adalora[lightning]")
    model = make_model()
    settings = AdaLoraSettings(target_rank=1, init_warmup=1, final_warmup=3, mask_interval=1)
    adaptation = AdaLora(model, settings)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def on_train_start(self) -> None:
            adaptation.begin(int(self.trainer.estimated_stepping_batches))
            self.model.train()

        def training_step(self, batch: Any, index: int) -> Any:
            return self.model(**batch).loss + adaptation.penalty()

        def on_train_end(self) -> None:
            adaptation.finish()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
            adaptation.attach(optimizer)
            return optimizer

    trainer = lightning.Trainer(
        max_steps=8,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        barebones=True,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(examples, batch_size=3))
    counts = adaptation.counts()
    assert counts is not None
    assert (counts.steps_seen, counts.skipped_steps) == (8, 0)
    assert sum(adaptation.rank_pattern().values()) == counts.target_total_rank


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

"""Memory and disk space that a real system refuses a real run: one sentence each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

TOO_LARGE = """
import resource, torch, psutil
from adalora.adapters import add_lora, freeze_base
from adalora.errors import UserError
from adalora.pretrained.loading import load_classifier
from adalora.training import AdaLoraTrainer, AdaLoraTrainingArguments

model = load_classifier("nano", num_labels=2)
add_lora(model, lora_type="svd", targets=["query"], init_rank=2, lora_alpha=16)
freeze_base(model, train=["lora"])
rows = [{"input_ids": torch.full((96,), 7), "labels": 1} for _ in range(1500)]
arguments = AdaLoraTrainingArguments(
    root_output_dir="run", max_steps=2, report_to="none", disable_tqdm=True, save_strategy="no",
    per_device_train_batch_size=1500, per_device_eval_batch_size=1500,
)
trainer = AdaLoraTrainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
used = psutil.Process().memory_info().vms
for work in (trainer.train, trainer.evaluate):
    resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000, resource.RLIM_INFINITY))
    try:
        work()
    except UserError as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(error)
"""


def test_a_batch_that_finds_no_memory_is_reported_with_its_size_and_what_to_lower(
    run_python: Run,
) -> None:
    done = run_python(TOO_LARGE)
    assert done.returncode == 0, done.stderr[-2000:]
    trained, evaluated = [line for line in done.stdout.splitlines() if line.startswith("Memory")]
    assert trained.startswith("Memory ran out at a batch of 1500 texts x 96 tokens: lower ")
    assert "--per_device_train_batch_size or --max_seq_length" in trained
    assert "raise --gradient_accumulation_steps" in trained
    assert "1500 texts x 96 tokens: lower --per_device_eval_batch_size" in evaluated
    assert "accumulation" not in evaluated


@pytest.mark.parametrize("size", [5_000, 60_000])
def test_a_disk_that_refuses_anywhere_in_a_run_ends_it_in_one_sentence(
    start_run: Callable[..., Any], run_python: Run, size: int
) -> None:
    """A limit on the size of files: first for the log, the tokens and TensorBoard, then later."""
    run = start_run("--report_to", "tensorboard")
    program = (
        "import resource, runpy, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        f"sys.argv = ['run_glue.py', *{run.flags!r}]\n"
        "from killable_run import PROGRAM\n"
        "runpy.run_path(str(PROGRAM), run_name='__main__')\n"
    )
    here = str(Path(__file__).parent)
    done = run_python(f"import sys; sys.path.insert(0, {here!r})\n{program}")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert "could not be written" in done.stderr

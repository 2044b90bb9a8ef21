"""Memory and disk space that a real system refuses a real run: one sentence each."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from tests.program import PROGRAM, run_program

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


@pytest.mark.slow
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


def assert_one_sentence(done: Any) -> None:
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert "could not be written" in done.stderr


@pytest.mark.slow
def test_a_disk_that_refuses_the_log_ends_a_run_in_one_sentence(
    start_run: Callable[..., Any], run_python: Run
) -> None:
    """A limit on the size of files. To the end of the process: TensorBoard writes until then."""
    run = start_run("--report_to", "tensorboard")
    done = run_python(
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        f"sys.argv = ['run_glue.py', *{run.flags!r}]\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
    )
    assert_one_sentence(done)


def test_a_disk_that_refuses_a_checkpoint_ends_a_run_in_one_sentence(
    start_run: Callable[..., Any],
) -> None:
    run = start_run("--report_to", "tensorboard")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        done = run_program(*run.flags, expect=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_one_sentence(done)

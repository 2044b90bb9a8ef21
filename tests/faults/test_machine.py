"""Memory, disks and connections that a real system refuses, told in one sentence."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from adalora.errors import UserError
from adalora.runtime.failures import batch_in_memory, report_as_user_error
from adalora.training.arguments.training import AdaLoraTrainingArguments

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


def test_a_batch_that_finds_no_memory_is_told_with_its_size_and_what_to_lower(
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


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_only_what_speaks_of_memory_is_told_as_such(error: Exception, told: bool) -> None:
    kind, says = (UserError, "3 texts x 7 tokens") if told else (RuntimeError, "size of tensor")
    with (
        pytest.raises(kind, match=says),
        batch_in_memory({"input_ids": torch.zeros(3, 7)}, training=True),
    ):
        raise error


@pytest.fixture
def arguments(tmp_path: Path) -> AdaLoraTrainingArguments:
    return AdaLoraTrainingArguments(root_output_dir=str(tmp_path / "run"), report_to="none")


def write_to_a_full_disk() -> None:
    with open("/dev/full", "w", encoding="utf-8") as file:
        file.write("x")


def read_only() -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "log.txt")


def lose_a_connection() -> None:
    store = dist.HashStore()
    store.set_timeout(__import__("datetime").timedelta(milliseconds=1))
    store.get("never")


def end_in_gloo() -> None:
    raise RuntimeError(
        "[/a/gloo/transport/tcp/pair.cc:537] Connection closed by peer. This is caused by"
    )


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (write_to_a_full_disk, r"could not be written \(No space left on device\): make room"),
        (read_only, r"could not be written \(log\.txt: Read-only file system\)"),
        (lose_a_connection, "Another process of this job went away or fell silent"),
        (end_in_gloo, r"fell silent \(Connection closed by peer\), so this one ends too"),
        (lambda: torch.empty(2**60), r"Memory ran out \(.*take a smaller model"),
    ],
)
def test_a_fault_of_the_machine_is_a_sentence_that_says_where_to_go_on(
    arguments: AdaLoraTrainingArguments, fault: Callable[[], None], says: str
) -> None:
    with (
        pytest.raises(UserError, match=f"{says}.*There is no checkpoint to go on from yet"),
        report_as_user_error(arguments),
    ):
        fault()
    (Path(str(arguments.output_dir)) / "checkpoint-7").mkdir(parents=True)
    with (
        pytest.raises(UserError, match=r"The same command goes on from .*checkpoint-7"),
        report_as_user_error(arguments),
    ):
        fault()


def test_a_mistake_of_the_program_stays_what_it_is(arguments: AdaLoraTrainingArguments) -> None:
    for error in (ValueError("a bug"), FileNotFoundError(2, "absent"), RuntimeError("a bug")):
        with pytest.raises(type(error)) as caught, report_as_user_error(arguments):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("size", [5_000, 60_000])
def test_a_disk_that_refuses_anywhere_in_a_run_ends_it_in_one_sentence(
    start_run: Callable[..., object], run_python: Run, size: int
) -> None:
    """A limit on the size of files: first for the log, the tokens and TensorBoard, then later."""
    run: object = start_run("--report_to", "tensorboard")
    program = (
        "import resource, runpy, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        f"sys.argv = ['run_glue.py', *{run.flags!r}]\n"  # type: ignore[attr-defined]
        "from killable_run import PROGRAM\n"
        "runpy.run_path(str(PROGRAM), run_name='__main__')\n"
    )
    scripts = str(Path(__file__).resolve().parents[2] / "scripts")
    done = run_python(f"import sys; sys.path.insert(0, {scripts!r})\n{program}")
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert "could not be written" in done.stderr

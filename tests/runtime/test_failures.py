"""Failures of the machine, as one sentence each; every other exception stays what it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import transformers

from adalora.errors import UserError
from adalora.glue import load
from adalora.pretrained.loading import load_classifier
from adalora.runtime.failures import batch_in_memory, report_as_user_error
from adalora.storage.files import read_bin, read_tensors
from adalora.training.arguments.training import AdaLoraTrainingArguments


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
    ],
)
def test_only_what_speaks_of_memory_is_reported_as_such(error: Exception, is_memory: bool) -> None:
    kind, says = (
        (UserError, "3 texts x 7 tokens") if is_memory else (RuntimeError, "size of tensor")
    )
    with (
        pytest.raises(kind, match=says),
        batch_in_memory({"input_ids": torch.zeros(3, 7)}, training=True),
    ):
        raise error


def read_tensors_without(monkeypatch: pytest.MonkeyPatch, file: Path, error: Exception) -> None:
    monkeypatch.setattr(safetensors.torch, "load_file", Mock(side_effect=error))
    read_tensors(file)


def read_bin_without(monkeypatch: pytest.MonkeyPatch, file: Path, error: Exception) -> None:
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    read_bin(file)


def load_model_without(monkeypatch: pytest.MonkeyPatch, file: Path, error: Exception) -> None:
    load = Mock(side_effect=error)
    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", load)
    load_classifier("nano", num_labels=2)


def load_data_without(monkeypatch: pytest.MonkeyPatch, file: Path, error: Exception) -> None:
    monkeypatch.setattr(load, "load_dataset", Mock(side_effect=error))
    load.load_data(load.DataSource(task_name="rte"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 2 bytes."),
        MemoryError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "read", [read_tensors_without, read_bin_without, load_model_without, load_data_without]
)
def test_missing_memory_while_loading_is_no_damaged_file(
    read: Callable[..., None],
    error: Exception,
    arguments: AdaLoraTrainingArguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"anything")
    with pytest.raises(UserError, match="Memory ran out"), report_as_user_error(arguments):
        read(monkeypatch, file, error)


def test_when_no_batch_size_fits_memory_is_named(arguments: AdaLoraTrainingArguments) -> None:
    with pytest.raises(UserError, match="Memory ran out"), report_as_user_error(arguments):
        raise RuntimeError("No executable batch size found, reached zero.")


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

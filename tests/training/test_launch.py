"""Processes that would not make up one job are refused, and what would divide the adapters too.

In one process; two real ones that are refused are in test_parallel.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import DistributedType

from adalora.errors import UserError
from adalora.runtime.launch import check_environment, check_job
from adalora.training.arguments.training import AdaLoraTrainingArguments

WHOLE = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}


def without(*names: str, **changed: str) -> dict[str, str]:
    return {**{k: v for k, v in WHOLE.items() if k not in names}, **changed}


@pytest.mark.parametrize(
    ("environment", "local_rank"),
    [
        ({}, -1),
        ({}, 0),
        (WHOLE, 1),
        (without(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1"), -1),
        ({"WORLD_SIZE": "1"}, -1),
        # A torchrun on each node, started by srun.
        ({**WHOLE, "SLURM_STEP_NUM_TASKS": "2"}, -1),
        ({"SLURM_NTASKS": "4"}, -1),
        ({"ACCELERATE_USE_CPU": "True"}, -1),
        ({"MASTER_ADDR": "host"}, -1),
    ],
)
def test_sound_environments_pass(environment: dict[str, str], local_rank: int) -> None:
    check_environment(environment, local_rank=local_rank)


@pytest.mark.parametrize(
    ("environment", "local_rank", "says"),
    [
        (without("RANK"), -1, "RANK is not set"),
        (without("LOCAL_RANK", "MASTER_ADDR"), -1, "LOCAL_RANK, MASTER_ADDR is not set"),
        ({"LOCAL_RANK": "0"}, -1, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set"),
        (without(RANK="2"), -1, "RANK is 2 and WORLD_SIZE is 2"),
        (without(WORLD_SIZE="two"), -1, "WORLD_SIZE is 'two'"),
        ({}, 1, "--local_rank 1 .* no launcher"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, -1, "srun started 4 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, -1, "mpirun started 2 processes"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"},
            -1,
            "started one.*--multi_gpu",
        ),
    ],
)
def test_an_environment_of_several_lone_processes_is_refused(
    environment: dict[str, str], local_rank: int, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        check_environment(environment, local_rank=local_rank)


def test_a_process_that_should_be_one_of_two_and_stands_alone_is_refused() -> None:
    alone = SimpleNamespace(distributed_type=DistributedType.NO, num_processes=1)
    check_job({}, alone)
    check_job({"WORLD_SIZE": "1"}, alone)
    with pytest.raises(UserError, match=r"2 processes were started.*--use_cpu"):
        check_job({"WORLD_SIZE": "2"}, alone)


def test_one_process_uses_one_gpu_and_says_so(
    make_arguments: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The installed Trainer would put torch's DataParallel around the model."""

    def two_gpus(arguments: Any) -> torch.device:
        arguments.distributed_state = PartialState(cpu=True)
        arguments._n_gpu = 2
        return torch.device("cpu")

    devices = cached_property(two_gpus)
    devices.__set_name__(transformers.TrainingArguments, "_setup_devices")
    monkeypatch.setattr(transformers.TrainingArguments, "_setup_devices", devices)
    arguments = make_arguments()
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 8
    assert "2 GPUs are visible and one is used" in caplog.text


# --- FSDP and DeepSpeed ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        ({"deepspeed": "ds.json"}, {}, "--deepspeed is refused.*--shard_base"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true"}, "--deepspeed is refused"),
        ({}, {"ACCELERATE_USE_MEGATRON_LM": "true"}, "ACCELERATE_USE_MEGATRON_LM"),
        ({"fsdp": "full_shard offload"}, {}, "--fsdp offload is refused"),
        ({"fsdp": "hybrid_shard"}, {}, "--fsdp hybrid_shard is refused"),
        ({"fsdp": "full_shard", "fsdp_config": "x.json"}, {}, "--fsdp_config is refused"),
        (
            {},
            {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "true"},
            "sets FSDP_OFFLOAD_PARAMS",
        ),
        ({"shard_base": True}, {}, "this run has one"),
        ({"fsdp": "full_shard"}, {}, "this run has one"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "this run has one"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(
    make_arguments: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    environment: dict[str, str],
    says: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says):
        make_arguments(**flags)


@pytest.mark.parametrize("name", ["torch_compile", "bf16_full_eval", "auto_find_batch_size"])
def test_what_was_not_tested_with_a_divided_base_is_refused(
    make_arguments: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(AdaLoraTrainingArguments, "world_size", 2)
    with pytest.raises(UserError, match=f"does not go with --{name}"):
        make_arguments(shard_base=True, **{name: True})


LEAVING = """
import gc, weakref
import torch, torch.distributed as dist
from adalora.runtime import launch

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


class Holder:
    pass


holder = Holder()
holder.model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
holder.model(torch.ones(1, 2)).sum().backward()
holder.itself = holder  # as a Trainer is: only the collector finds it
del holder

alive = [weakref.ref(o) for o in gc.get_objects() if type(o).__name__ == "DistributedDataParallel"]
assert len(alive) == 1
leave = dist.destroy_process_group


def look():
    print("held" if alive[0]() is not None else "let go of")
    leave()


dist.destroy_process_group = look
launch.leave_job()
assert not dist.is_initialized()
"""


@pytest.mark.slow
def test_what_holds_the_group_is_let_go_of_while_the_group_lives() -> None:
    """Or the collector ends the group, with Python's lock in its hand, and may wait for ever."""
    words = [sys.executable, "-c", LEAVING]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "let go of"), done.stderr

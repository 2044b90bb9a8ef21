"""How processes become one job, or are refused before anything is trained, and how they part.

A process learns from its launcher, by environment variables, which one of how many it is. Where
that does not arrive, or no process group of that size comes about, every process takes itself for
the only one, and as many models are trained, each on all the data, into the same folder.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from accelerate.utils import DistributedType  # type: ignore[import-untyped]

from adalora.errors import UserError

ADVICE = "torchrun --nproc_per_node=N (or accelerate launch --multi_gpu --num_processes N)"

#: For a thread of gloo that has lost the processor to let go of what it holds, in seconds.
_PARTING = 0.2

#: The variables that say which process of which job this is, as torch reads them.
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: How many processes other launchers started; torch takes no notice of them.
_FOREIGN = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun",
    "PMI_SIZE": "mpirun",
    "MV2_COMM_WORLD_SIZE": "mpirun",
}


def check_environment(environment: Mapping[str, str], *, local_rank: int = -1) -> None:
    """Refuse an environment that does not say which process of how many this is.

    ``local_rank`` is that of the flag, which old launchers give; -1 without.

    Raises:
        UserError: if the variables of a launcher are incomplete or contradict one another, or
            several processes were started in a way that would train a model each.
    """
    numbers = {name: _number(environment, name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    world_size, rank = numbers["WORLD_SIZE"], numbers["RANK"]
    if (world_size or 1) > 1 or numbers["LOCAL_RANK"] is not None:
        missing = [name for name in _PLACE if not environment.get(name)]
        if missing:
            there = ", ".join(
                f"{name}={environment[name]}" for name in _PLACE if name not in missing
            )
            raise UserError(
                f"The environment says that this is one of several processes ({there}), and "
                f"{', '.join(missing)} is not set, so that they would not find one another; start "
                f"them with {ADVICE}, or unset these variables."
            )
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise UserError(
                f"RANK is {rank} and WORLD_SIZE is {world_size}; ranks run from 0 to "
                f"WORLD_SIZE - 1. Start the processes with {ADVICE}."
            )
        return
    for name, launcher in _FOREIGN.items():
        if (_number(environment, name) or 1) > 1:
            raise UserError(
                f"{launcher} started {environment[name]} processes ({name}), and each would train "
                f"a model of its own; let {launcher} start one torchrun on each node: torchrun "
                "--nnodes=NODES --node_rank=NODE --master_addr=HOST --nproc_per_node=N."
            )
    if "ACCELERATE_USE_CPU" in environment and "MASTER_ADDR" in environment and not world_size:
        raise UserError(
            "accelerate launch was asked for several processes and started one: it does so on the "
            "CPU whatever --num_processes says. Add --multi_gpu, which serves for the CPU too, or "
            "start torchrun --nproc_per_node=N."
        )
    if local_rank > 0:
        raise UserError(
            f"--local_rank {local_rank} says that this is one of several processes, and no "
            f"launcher set WORLD_SIZE, so each would train a model; start them with {ADVICE}."
        )


def check_job(environment: Mapping[str, str], state: Any) -> None:
    """Refuse a process that its launcher counts among several and that stands alone.

    ``state`` is accelerate's ``PartialState``, once the process group should be there.

    Raises:
        UserError: if the group has another size than ``WORLD_SIZE``, or gradients would not be
            exchanged in it.
    """
    expected = _number(environment, "WORLD_SIZE") or 1
    if expected == 1:
        return
    here = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    alone = state.distributed_type == DistributedType.NO or state.num_processes == 1
    if here != expected or alone:
        raise UserError(
            f"{expected} processes were started and they did not become one job (the group has "
            f"{here}, and training sees {state.num_processes}), so that each would train a model "
            "of its own; on the CPU give --use_cpu (TrainingArguments(use_cpu=True)), and start "
            f"them with {ADVICE}."
        )


def leave_job() -> None:
    """Leave the process group at the end of a program, once its model and Trainer are let go of.

    A thread of gloo that lets go of a tensor needs Python's lock for it. Two things can go wrong
    where more processes run than cores, both seen with torch 2.13 on Python 3.11:

    - While the interpreter is being torn down the thread is ended inside a destructor that may not
      be left so, and the process aborts ("terminate called without an active exception", SIGABRT).
      So the group, and with it its threads, has to end before.
    - Python's collector holds the lock and waits, in the destructor of the group, for the thread
      that waits for the lock. So what else holds the group (the reducer of a model in DDP) is
      collected while the group lives; torch ends the group itself without the lock.

    Where something holds the group still (the caches of DTensor, the frames of an exception) its
    threads are given time to come to rest.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
        time.sleep(_PARTING)


def asks_for_fsdp(environment: Mapping[str, str]) -> bool:
    """Whether accelerate's configuration (``accelerate launch --use_fsdp``) wants FSDP."""
    return _is_on(environment, "ACCELERATE_USE_FSDP")


def refused_sharding(environment: Mapping[str, str], training: Any) -> str | None:
    """Why the division of a model that was asked for is refused, in a sentence; None if it is not.

    ``accelerate launch`` leaves its configuration in the environment; ``training`` are
    TrainingArguments before their own checks.
    """
    if training.deepspeed or _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        return (
            "--deepspeed is refused: ZeRO takes the gradients away before AdaLoRA has read them, "
            "and puts back the singular values that it set to zero. --shard_base divides the "
            "frozen base, which is nearly all of the model, and needs no DeepSpeed."
        )
    for name in ("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        if _is_on(environment, name):
            return (
                f"accelerate's configuration sets {name}, which divides matrices that AdaLoRA "
                "decides on; run accelerate launch without it. --shard_base divides the base."
            )
    words = set() if training.fsdp in (None, True, False) else set(str(training.fsdp).split())
    if unknown := sorted(words - {"", "True", "true", "full_shard", "auto_wrap"}):
        return (
            f"--fsdp {' '.join(unknown)} is refused; the frozen base is divided in full, layer by "
            "layer (--shard_base), and nothing else."
        )
    if training.fsdp_config:
        return "--fsdp_config is refused: --shard_base has nothing to configure."
    if not asks_for_fsdp(environment):
        return None
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        if _is_on(environment, name):
            return (
                f"accelerate's configuration sets {name}, which --shard_base does not do; switch "
                "it off (--gradient_checkpointing is a flag of its own)."
            )
    return None


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1", "yes")


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name} is {text!r} in the environment; a launcher sets a number.") from (
            error
        )

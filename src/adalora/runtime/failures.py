"""Failures of the machine reported in one sentence: memory, disks, other processes of the job.

Nothing is repaired here. What was written before is whole (``adalora.storage.snapshots``), so each
sentence can say how to go on.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainingArguments

from adalora.errors import UserError
from adalora.storage.snapshots import snapshots

#: Parts of what torch and its libraries say as RuntimeError when memory is refused.
_NO_MEMORY = ("DefaultCPUAllocator", "out of memory", "bad_alloc", "ALLOC_FAILED", "bad allocation")
#: Disks that are full, over quota, read-only or broken.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE}
#: Where gloo, which raises RuntimeError, speaks of its connections.
_GLOO = "gloo/transport"


@contextmanager
def report_as_user_error(args: TrainingArguments) -> Iterator[None]:
    """Turn a failure of the machine into a ``UserError``; every other exception passes.

    Raises:
        UserError: if memory ran out, a disk refused, or another process of the job went away.
    """
    before, threading.excepthook = threading.excepthook, _quietly(threading.excepthook)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        found = snapshots(Path(str(args.output_dir)))
        last = resume_hint(args, found[-1]) if found else "There is no checkpoint to go on from yet"
        raise UserError(f"{reason} {last[0].upper()}{last[1:]}.") from error
    finally:
        threading.excepthook = before


def _quietly(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Without the traceback of a thread that met a disk's refusal (TensorBoard writes in one).

    The main thread meets it too, and reports it.
    """

    def report(what: threading.ExceptHookArgs) -> None:
        if not (isinstance(what.exc_value, OSError) and what.exc_value.errno in _DISK):
            hook(what)

    return report


def resume_hint(args: TrainingArguments, checkpoint: Path) -> str:
    """What to type so that the run goes on from ``checkpoint``, its last one, as a clause."""
    if args.save_only_model:
        return f"nothing can go on from {checkpoint}, which holds the model alone"
    # The flag would start afresh.
    more = ""
    if getattr(args, "overwrite_output_dir", False) and not args.resume_from_checkpoint:
        more = " with --resume_from_checkpoint True added"
    return f"the same command{more} goes on from {checkpoint}"


def _reason(error: Exception) -> str | None:
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return (
            f"Memory ran out ({_shortened(text)}): free some, or take a smaller model or "
            "--base_dtype bfloat16."
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"A file could not be written ({where}{error.strerror}): make room, or mend the disk."
        )
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _GLOO in text):
        # Without the place in gloo's source, and its guesses.
        said = re.sub(r"^\[[^]]*\] *", "", text).split(". ")[0]
        return (
            f"Another process of this job went away or fell silent ({_shortened(said)}), so this "
            "one ends too; see what that one said last."
        )
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else text[:160].rsplit(" ", 1)[0] + " ..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory was refused, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _NO_MEMORY)


@contextmanager
def batch_in_memory(inputs: Mapping[str, Any], *, training: bool) -> Iterator[None]:
    """Say how large the batch is that the work inside does not find memory for.

    Args:
        inputs: of the model; ``input_ids`` are [batch, length].
        training: whether gradients are computed, which decides what to lower.

    Raises:
        UserError: in place of what the allocator raises.
    """
    try:
        yield
    except Exception as error:
        ids = inputs.get("input_ids")
        if not is_out_of_memory(error) or not isinstance(ids, Tensor):
            raise
        size, length = ids.shape
        kind = "train" if training else "eval"
        more = (
            " (and raise --gradient_accumulation_steps by as much: the result is the same)"
            ", or try --gradient_checkpointing or --bf16"
            if training
            else ""
        )
        raise UserError(
            f"Memory ran out at a batch of {size} texts x {length} tokens: lower "
            f"--per_device_{kind}_batch_size or --max_seq_length{more}."
        ) from error

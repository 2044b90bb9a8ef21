"""How a run ends before its time, in one sentence that says how to go on.

Failures of the machine (memory, disks, other processes of the job) are reported, and nothing is
repaired: what was written before is whole (``adalora.storage.snapshots``). On SIGTERM and SIGINT
the step under way is finished and a checkpoint written; the exit status is the shell's (143, 130).
A second signal ends the process at once, whatever it is doing. Several processes stop after the
same step, although a signal reaches each at its own moment, or one of them alone.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adalora.errors import Interrupted, UserError, is_main_process, is_out_of_memory
from adalora.runtime.launch import leave_job
from adalora.storage.snapshots import snapshots

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


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KEY = "adalora/stop"


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ends a run on a signal; training by an ``Interrupted`` after its checkpoint was written.

    Give it to the Trainer as one of ``callbacks``, and do all of the run inside ``handle_signals``.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._last_step: int | None = None
        self._training = False
        self._handled: list[signal.Signals] = []

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Answer the signals while inside; only the main thread can.

        One that whoever started the program had it ignore (``nohup``, a job in the background)
        stays ignored.
        """
        self._handled = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._answer) for number in self._handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _answer(self, number: int, frame: FrameType | None) -> None:
        # From here on the system's own answer to both, which no busy library can hold up.
        for one in self._handled:
            signal.signal(one, signal.SIG_DFL)
        self._asked = number
        name = signal.Signals(number).name
        if not self._training:
            raise Interrupted(
                number,
                f"Stopped by {name} while no training was under way; what was written before is "
                "as it was.",
            )
        if is_main_process():
            # Not print, which may be what was interrupted.
            text = f"{name}: a checkpoint follows after this step; a second signal ends at once.\n"
            os.write(2, text.encode())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on a signal waits for the end of the step."""
        self._training = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for the checkpoint that the run ends with."""
        if self._last_step is None:
            self._last_step = self._agree(state.global_step + 1)
            if self._last_step is not None and not _several():
                self._last_step = state.global_step
        if self._last_step is not None and state.global_step >= self._last_step:
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the last step there is no other to agree on: the processes wait for one another."""
        if not self._training or state.global_step < state.max_steps:
            return
        if self._agree(state.global_step, wait=True) is not None:
            self._last_step = state.global_step
            control.should_save = True

    # An evaluation at the end of the last epoch comes after that event, and before the saving.
    on_evaluate = on_epoch_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on there is no step to wait for."""
        if self._agree(state.global_step, wait=True) is not None:
            self._end(args, state)
        self._training = False

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The checkpoint is written: end."""
        if self._last_step is not None and state.global_step >= self._last_step:
            self._end(args, state)

    def _agree(self, step: int, *, wait: bool = False) -> int | None:
        """After which step all processes stop, ``step`` if this one proposes it; None for go on.

        No process is more than one step ahead of another, as every step needs all. So what one
        writes into the common store after this step is read by all after the next. With ``wait``
        all are here.
        """
        if not _several():
            return step if self._asked is not None else None
        store = dist.distributed_c10d._get_default_store()
        if self._asked is not None:
            store.compare_set(_KEY, "", f"{step} {self._asked}")
        if wait:
            dist.barrier()
        if not store.check([_KEY]):
            return None
        last, number = store.get(_KEY).split()
        self._asked = int(number)
        return int(last)

    def _end(self, args: TrainingArguments, state: TrainerState) -> NoReturn:
        leave_job()
        self._training = False
        raise Interrupted(int(self._asked or 0), _how_to_go_on(int(self._asked or 0), args, state))


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _how_to_go_on(number: int, args: TrainingArguments, state: TrainerState) -> str:
    checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
    after = f"after step {state.global_step} of {state.max_steps}"
    if checkpoint.is_dir():
        last = f"its checkpoint was written: {resume_hint(args, checkpoint)}"
    else:
        last = "no checkpoint of it was asked for (--save_strategy)"
    return f"Stopped by {signal.Signals(number).name} {after}; {last}."

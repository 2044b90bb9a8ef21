"""The exceptions that programs report in one sentence, and how they do."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake in a flag, a file or a value, reported in one sentence.

    The message names the value, what was expected and what to do. Programs print it without a
    traceback and exit with status 2. Values come from anywhere: what would break the line or move
    the cursor is escaped, and what is too long for a sentence is cut in its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_one_line(message))


def _one_line(text: str, most: int = 1200) -> str:
    text = " ".join(text.splitlines())
    if len(text) > most:
        # What to do stands at the end.
        text = f"{text[: most - 400]} ... {text[-390:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end; the message says where it stood and how to go on.

    No ``Exception``, so that libraries which catch and report failures let it through.

    Args:
        signal_number: such as ``signal.SIGTERM``; the exit status is 128 more, as in a shell.
        message: one sentence for the user.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


#: Parts of what torch and its libraries say as RuntimeError when memory is refused; the last is
#: accelerate's word where --auto_find_batch_size has tried every size.
_NO_MEMORY = (
    *("DefaultCPUAllocator", "out of memory", "bad_alloc", "ALLOC_FAILED", "bad allocation"),
    "No executable batch size found",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this says that memory was refused, on whatever device."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(part in text for part in _NO_MEMORY)


def is_main_process() -> bool:
    """Whether this process speaks for its job: the only one, or the first as launchers count."""
    return int(os.environ.get("RANK", "0")) == 0


def exit_with_message(main: Callable[[], int | None]) -> int:
    """Run ``main`` and return the process's exit status.

    Returns:
        What ``main`` returned (None is 0); 2 after a ``UserError``, whose sentence goes to the
        standard error stream, with the process's rank where there are several; 128 and the
        signal's number after a signal, which the first process reports. Where nobody reads the
        standard output any more (``| head``), it is that of SIGPIPE, without a word.
    """
    try:
        try:
            return main() or 0
        finally:
            print(end="", flush=True)  # rather than at the interpreter's end, which would complain
    except UserError as error:
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        where = f" (process {os.environ.get('RANK', '0')})" if several else ""
        print(f"error{where}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if is_main_process():
            print(str(stop) or "Interrupted.", file=sys.stderr)
        return 128 + int(getattr(stop, "signal_number", signal.SIGINT))
    except BrokenPipeError:
        if not _output_is_unread():
            raise
        # What is still to be written goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except SystemExit as stop:
        # rich ends the program itself when its output is not read.
        if isinstance(stop.__context__, BrokenPipeError):
            return 128 + signal.SIGPIPE
        raise


def _output_is_unread() -> bool:
    """Whether the standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(1, 0)  # both of these are reported unasked
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))

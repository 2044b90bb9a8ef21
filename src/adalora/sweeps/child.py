"""The process of one run of a sweep: ``adalora train``, which ends when the sweep is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from adalora.errors import exit_with_message

__all__ = ["main", "watched"]


def watched(work: Callable[[], int | None]) -> int:
    """Do ``work`` and return the exit status; end by SIGTERM when the standard input does.

    The sweep holds the other end of that pipe, which the system closes however the sweep ends.
    """

    def watch() -> None:
        # Not sys.stdin: the interpreter's end would wait for a read through its buffer.
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return exit_with_message(work)


def main(flags: Sequence[str]) -> int:
    """Train as the flags say."""
    from adalora.commands import train

    return watched(lambda: train.main(flags))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

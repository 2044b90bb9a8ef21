"""One writer in a run's folder at a time.

The lock is the kernel's, on the file ``.lock``: it goes with the process that holds it, however
that ends, so a killed run leaves nothing to clear away.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adalora.errors import UserError

__all__ = ["LOCK_FILE", "locked_folder"]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


@contextmanager
def locked_folder(folder: Path, *, flag: str = "--root_output_dir") -> Iterator[None]:
    """Hold ``folder``, which ``flag`` named, while inside.

    Raises:
        UserError: if another process holds it, or it cannot be written to.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        logger.warning("This system has no file locks: start no second run in %s.", folder)
        yield
        return
    try:
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{flag} {str(folder)!r} cannot be written to ({error}); choose another."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                f"{flag} {str(folder)!r} is in use by {holder}: wait until that run "
                "has ended, or choose another folder."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logger.warning("%s cannot be locked (%s): start no second run there.", folder, error)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield

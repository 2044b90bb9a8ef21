"""One writer in a folder at a time, by filelock's native lock.

The lock is the system's: it goes with the process that holds it, however that ends, so a killed
run leaves nothing to clear away. A descriptor is locked rather than a name, because the file keeps
its content (who holds it), and an artefact's folder is locked itself, without a file in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import lock_descriptor

from adalora.errors import UserError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
#: What file systems without locks answer, some network file systems among them.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def lock_or_warn(descriptor: int, folder: Path) -> bool:
    """Lock an open file, or ``folder`` itself, until its descriptor is closed.

    Returns:
        Whether it is locked now; False, after a warning, where the file system has no locks.

    Raises:
        BlockingIOError: if another process (or another descriptor of this one) holds it.
    """
    try:
        if lock_descriptor(descriptor, blocking=False):
            return True
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s): start no second run there.", folder, error)
        return False
    raise BlockingIOError(errno.EWOULDBLOCK, "in use by another process", str(folder))


@contextlib.contextmanager
def locked_folder(folder: Path, *, flag: str = "--root_output_dir") -> Iterator[None]:
    """Hold ``folder``, which ``flag`` named, while inside.

    Raises:
        UserError: if another process holds it, which is named, or it cannot be written to.
    """
    try:
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{flag} {str(folder)!r} cannot be written to ({error}); choose another."
        ) from error
    with file:
        try:
            lock_or_warn(file.fileno(), folder)
        except BlockingIOError as error:
            holder = ""
            with contextlib.suppress(OSError):  # Windows keeps the content from others too
                file.seek(0)
                holder = file.read().strip()
            raise UserError(
                f"{flag} {str(folder)!r} is in use by {holder or 'another process'}: wait until "
                "that run has ended, or choose another folder."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield

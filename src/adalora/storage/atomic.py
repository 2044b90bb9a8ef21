"""Files and folders that appear whole or not at all, and one writer in a folder at a time.

What is written is written aside, synced, then renamed. The lock is the system's, by filelock: it
goes with the process that holds it, however that ends, so a killed run leaves nothing to clear
away. A descriptor is locked rather than a name, because the file keeps its content (who holds it),
and an artefact's folder is locked itself, without a file in it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from filelock import lock_descriptor
from safetensors import SafetensorError

from adalora.errors import UserError


@contextlib.contextmanager
def atomic_write(
    target: Path, *, before_replacing: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Give a path to write to, which takes the place of ``target`` if the block succeeds.

    If it fails, or the process is interrupted, ``target`` is as it was and nothing is left next to
    it; a killed process may leave a hidden folder ``.NAME-...`` there.

    Args:
        target: a file or a folder, as the block decides; its parent exists.
        before_replacing: called last, once the new one is complete; may raise to keep the old one.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or a pipe, which no file replaces")
    # In the target's parent, so that it is renamed within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        new, old = Path(name) / target.name, Path(name) / "replaced"
        yield new
        finish([new, *new.rglob("*")] if new.is_dir() else [new])
        before_replacing()
        if not (target.is_dir() or (new.is_dir() and os.path.lexists(target))):
            os.replace(new, target)
            return
        # A folder can be neither replaced nor a replacement in one call.
        target.rename(old)
        try:
            new.rename(target)
        except OSError:
            old.rename(target)
            raise


@contextlib.contextmanager
def complete_or_absent(
    target: Path,
    *,
    overwrite: bool,
    replaceable: Callable[[Path], bool],
    protected: Sequence[Path] = (),
) -> Iterator[Path]:
    """``atomic_write`` for a place that a user named, which is made if need be.

    Args:
        target: a file or a folder, as the block decides. Its parents are made, and are gone again
            if the block fails.
        overwrite: replace what is there, after the new one is complete.
        replaceable: whether what is there may be replaced at all.
        protected: paths that may neither be replaced nor lie in what is.

    Raises:
        UserError: if ``target`` is there and may not be replaced, or cannot be written.
    """
    target = target.absolute()
    check = functools.partial(_check, target, overwrite, replaceable, protected)
    check()
    made: list[Path] = []
    try:
        made = [parent for parent in target.parents if not parent.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, before_replacing=check) as new:
            yield new
        made = []
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{target} could not be written ({reason}); nothing was left there. Name a place with "
            "room that you may write to."
        ) from error
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def _check(
    target: Path, overwrite: bool, replaceable: Callable[[Path], bool], protected: Sequence[Path]
) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise UserError(f"{target} exists already; name another place; --overwrite replaces it.")
    for path in protected:
        if path.resolve().is_relative_to(target.resolve()):
            raise UserError(
                f"{target} holds {path}, which this reads from, and is not replaced even with "
                "--overwrite; name another place."
            )
    if not replaceable(target):
        raise UserError(
            f"{target} does not look like an earlier result of this command and is not replaced "
            "even with --overwrite; name another place, or remove it yourself."
        )


def move_files(source: Path, target: Path, files: Sequence[str], *, last: str) -> None:
    """Move files into a folder that holds others too: complete once it has ``last``.

    Args:
        source: a folder on the same file system, its files finished (``finish``).
        target: the folder; without ``last`` as soon as the first file changes.
        files: paths in ``source``, replaced in ``target``.
        last: the path of the file that says that all is there, moved after all others.
    """
    (target / last).unlink(missing_ok=True)
    for name in (*files, last):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target / name)


def without_links(path: str, flags: int) -> int:
    """An ``opener`` for ``open``: the file itself, and never what somebody made its name stand for.

    Raises:
        OSError: if ``path`` is a symbolic link, or no ordinary file.
    """
    refused = OSError(errno.ELOOP, "it is a link or no ordinary file, and is not written to", path)
    try:
        # A pipe would be waited for.
        special = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags | special, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise refused from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refused
    return descriptor


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link without what it points to; if it is there.

    What cannot be removed is left.
    """
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def finish(paths: Iterable[Path]) -> None:
    """Have the files on the disk before they get their name, and readable as files usually are.

    safetensors lets their owner alone read them; a server often runs as somebody else.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in paths:
        if path.is_file():
            path.chmod(0o666 & ~mask)
            sync(path)


def sync(path: Path) -> None:
    """Have the kernel write a file or folder out; some file systems cannot for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


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
        file = open(folder / LOCK_FILE, "a+", encoding="utf-8", opener=without_links)  # noqa: SIM115
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

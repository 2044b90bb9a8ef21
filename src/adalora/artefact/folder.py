"""One folder as the home of an artefact: found, checked, and written by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from adalora.artefact.description import MANIFEST, Description
from adalora.errors import UserError
from adalora.storage.atomic import finish, move_files
from adalora.storage.files import file_checksum
from adalora.storage.lock import lock_or_warn

_ASIDE = ".artefact-"


def find_artefact(path: str | Path) -> Path:
    """The folder that holds the artefact: ``path`` itself, or ``model/`` in the root of a run.

    Raises:
        UserError: if neither holds a complete one.
    """
    root = Path(path).expanduser()
    for folder in (root, root / "model"):
        if (folder / MANIFEST).is_file():
            return folder
    if not root.exists():
        raise UserError(f"{root} does not exist; name a run's folder or an artefact.")
    unfinished = any(root.glob("checkpoint-*")) or any(root.glob("model/checkpoint-*"))
    hint = " It holds training checkpoints: finish the run first." if unfinished else ""
    raise UserError(
        f"{root} holds no complete artefact: {MANIFEST}, which is written last, is missing.{hint}"
    )


def check_files(folder: Path, description: Description) -> None:
    """Compare the files with what the description says of them.

    Raises:
        UserError: naming the first that is missing, of another size or of other content.
    """
    for name, size in description.files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        state = None
        if found is None:
            state = "missing"
        elif found != size:
            state = f"{found} bytes long instead of {size}"
        elif name in description.checksums and file_checksum(path) != description.checksums[name]:
            state = "not the file that was saved (its SHA-256 is another)"
        if state is not None:
            raise UserError(
                f"The artefact in {folder} is damaged: {name} is {state}. Copy it again, or train "
                "again."
            )


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the folder and hold it against other writers; what a killed one left aside is removed.

    The lock is the system's, on the folder itself, and ends with the process. Where the file system
    has no locks, two writers at once leave files that do not fit the checksums, which is found on
    loading.

    Raises:
        UserError: if it cannot be made, or another process is writing there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Windows opens no folders.
        descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made ({_reason(error)}); choose another."
        ) from error
    if descriptor is None:
        yield
        return
    try:
        try:
            locked = lock_or_warn(descriptor, folder)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is saving to {folder} at this moment; choose another folder, or "
                "wait for it."
            ) from error
        for left in folder.glob(f"{_ASIDE}*") if locked else ():
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[Path]:
    """A folder inside ``folder`` to write to first; it is gone afterwards, whatever happens.

    Raises:
        UserError: in place of what a full disk or a lacking permission raises.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder) as name:
            yield Path(name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The artefact could not be written to {folder} ({_reason(error)}); what was there is "
            "as it was. Make room, or choose another folder."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.errno != errno.ENOSPC else "the disk is full"
    return " ".join(str(error).split())


def publish(aside: Path, folder: Path, files: Sequence[str]) -> None:
    """Move ``files`` and then the manifest from ``aside`` to ``folder``, on the disk for good.

    Until the manifest is in its place, the folder holds no artefact.

    Raises:
        UserError: if a file cannot be replaced.
    """
    finish(aside / name for name in (*files, MANIFEST))
    try:
        move_files(aside, folder, files, last=MANIFEST)
    except OSError as error:
        raise UserError(
            f"Files in {folder} could not be replaced ({_reason(error)}), so it holds no complete "
            "artefact now; save to another folder."
        ) from error

"""Checkpoint folders that are complete or absent, and known to be sound before they are used.

A checkpoint is written into a hidden folder next to its place, sealed with a manifest (bytes and
SHA-256 of every file), synced to the disk and renamed. Whatever moment a process dies at, a folder
``checkpoint-N`` is whole; should the disk lose bytes later, the manifest shows it. What the files
hold is not known here.
"""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from adalora.errors import UserError
from adalora.storage.atomic import remove, sync
from adalora.storage.files import file_checksum, listed

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)")
# Hidden, so that neither a listing nor the Trainer's `checkpoint-*` takes one for a checkpoint.
_PARTIAL, _REMOVED = ".partial", ".removed"
# JSON nested too deeply, and infinity where a whole number belongs.
_TOO_MUCH = (RecursionError, OverflowError)


class DamagedCheckpointError(UserError):
    """A checkpoint that is torn, truncated or altered; an earlier one may serve instead."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    ``step`` is the number of optimizer steps made; ``settings`` the run's flags as JSON
    values; ``files`` maps a path in the folder to its bytes and SHA-256.
    """

    step: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


# ---- writing ----


def staging_folder(target: Path) -> Path:
    """Where the files of the checkpoint ``target`` are written until it is published."""
    return target.with_name(f".{target.name}{_PARTIAL}")


def publish(target: Path, *, step: int, settings: Mapping[str, Any]) -> None:
    """Seal what lies in ``staging_folder(target)`` and give it its name.

    A checkpoint that already has the name is replaced.

    Raises:
        OSError: if the disk refuses; ``target`` is as it was then.
    """
    aside = staging_folder(target)
    if aside.is_symlink():
        raise OSError(errno.ELOOP, "somebody put a link in its place", str(aside))
    if target.exists() and not target.is_dir():
        raise FileExistsError(errno.EEXIST, "a file stands in its place", str(target))
    files = {}
    for path in sorted(aside.rglob("*")):
        if path.is_file():
            sync(path)
            entry = {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
            files[path.relative_to(aside).as_posix()] = entry
    manifest = {"format_version": FORMAT_VERSION, "step": step, "settings": dict(settings)}
    text = json.dumps({**manifest, "files": files}, indent=2) + "\n"
    (aside / MANIFEST).write_text(text, encoding="utf-8")
    sync(aside / MANIFEST)
    for folder in {aside, *((aside / name).parent for name in files)}:
        sync(folder)
    if target.exists():
        _remove(target)
    aside.rename(target)
    sync(target.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written or half removed in ``folder``."""
    for path in folder.glob(".checkpoint-*"):
        if path.name.endswith((_PARTIAL, _REMOVED)):
            remove(path)


def rotate(folder: Path, limit: int | None, *, newest: Path, protected: Iterable[Path]) -> None:
    """Remove checkpoints until ``limit`` are left, the oldest first.

    Those beyond ``newest`` were left by an attempt that was given up, and go before all
    others. ``newest`` and the protected ones stay whatever the limit is; None or 0 is no limit.
    """
    if not limit or limit < 0:
        return
    step = _step(newest)
    found = sorted(snapshots(folder), key=lambda path: (_step(path) <= step, _step(path)))
    stay = {newest, *protected} & set(found)
    excess = len(found) - max(limit, len(stay))
    for path in [path for path in found if path not in stay][: max(excess, 0)]:
        _remove(path)


def _remove(path: Path) -> None:
    """Under another name first, so that a checkpoint is never seen half removed."""
    aside = path.with_name(f".{path.name}{_REMOVED}")
    remove(aside)
    path.rename(aside)
    remove(aside)


# ---- reading ----


def snapshots(folder: Path) -> list[Path]:
    """Checkpoint folders in ``folder``, by step, sound or not."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint, itself checked; the files are not.

    Raises:
        DamagedCheckpointError: if it is absent, cut off or no manifest.
        UserError: if it is of a later format, or names a file outside the folder.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DamagedCheckpointError(
            f"{folder} has no {MANIFEST}: it is no checkpoint, or was not written to its end."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = int(content["format_version"])
        if version <= FORMAT_VERSION:
            files = {
                str(name): (int(entry["bytes"]), str(entry["sha256"]))
                for name, entry in content["files"].items()
            }
            manifest = Manifest(int(content["step"]), dict(content["settings"]), files, version)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, *_TOO_MUCH) as error:
        raise DamagedCheckpointError(f"{path} is damaged and cannot be read: {error!r}.") from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder} is of checkpoint format {version}, and this release reads formats up to "
            f"{FORMAT_VERSION}: install the release that wrote it, or a later one."
        )
    for name in files:
        if not _stays_inside(folder, name):
            raise UserError(
                f"{path} names {name!r}, which lies outside the checkpoint's folder; it was not "
                "written by this program and is refused."
            )
    return manifest


def _stays_inside(folder: Path, name: str) -> bool:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        return False
    return (folder / path).resolve().is_relative_to(folder.resolve())


def verify(folder: Path, *, require: Iterable[str] = ()) -> Manifest:
    """Check every byte of a checkpoint against its manifest, which must name all of ``require``.

    Raises:
        DamagedCheckpointError: naming the file that is missing, cut off or altered.
        UserError: as ``read_manifest``.
    """
    manifest = read_manifest(folder)
    absent = [name for name in require if name not in manifest.files]
    if absent:
        raise DamagedCheckpointError(f"{folder} was written without {listed(absent)}.")
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        try:
            if not path.is_file():
                raise DamagedCheckpointError(f"{folder} is damaged: {name} is missing.")
            found = path.stat().st_size
            if found != size:
                raise DamagedCheckpointError(
                    f"{folder} is damaged: {name} has {found} bytes instead of {size}."
                )
            if file_checksum(path) != digest:
                raise DamagedCheckpointError(
                    f"{folder} is damaged: {name} is not what was written (its SHA-256 differs)."
                )
        except OSError as error:
            raise DamagedCheckpointError(f"{folder} is damaged: {name}: {error}.") from error
    return manifest


def newest_sound(folder: Path) -> Path | None:
    """The last checkpoint in ``folder`` that is whole; None where there is none at all.

    A damaged one is named in a warning and passed over in favour of the one before.

    Raises:
        UserError: if there are checkpoints and every one is damaged, or one is of a later format
            or names a file outside its folder.
    """
    damaged = []
    for path in reversed(snapshots(folder)):
        try:
            verify(path)
        except DamagedCheckpointError as error:
            logger.warning("%s It is passed over.", error)
            damaged.append(path.name)
            continue
        return path
    if damaged:
        raise UserError(
            f"No checkpoint in {folder} can be resumed from: {listed(damaged)} "
            f"{'is' if len(damaged) == 1 else 'are'} damaged (the reasons are above). Start afresh "
            "with --overwrite_output_dir, or in another --root_output_dir."
        )
    return None

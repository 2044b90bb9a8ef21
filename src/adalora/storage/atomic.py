"""Where an export goes: complete, or not there at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from adalora.errors import UserError

__all__ = ["complete_or_absent"]


@contextlib.contextmanager
def complete_or_absent(
    target: Path,
    *,
    force: bool,
    replaceable: Callable[[Path], bool],
    protected: Sequence[Path] = (),
) -> Iterator[Path]:
    """Give a path to write to, which takes the place of ``target`` if the block succeeds.

    If it fails, or the process is interrupted, ``target`` is as it was and nothing is left beside
    it, not even a parent folder.

    Args:
        target: a file or a folder, as the block decides; its parents are made.
        force: replace what is there, after the new one is complete.
        replaceable: whether what is there may be replaced at all.
        protected: paths that may neither be replaced nor lie in what is.

    Raises:
        UserError: if ``target`` is there and may not be replaced, or cannot be written.
    """
    target = target.absolute()
    _check(target, force, replaceable, protected)
    made: list[Path] = []
    try:
        made = _make_parents(target)
        # Beside the target, so that it is renamed within one file system.
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
            new = Path(name) / target.name
            yield new
            _finish(new)
            _check(target, force, replaceable, protected)
            _put(new, target, old=Path(name) / "replaced")
        made = []
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{target} could not be written ({reason}); nothing was left there. Name a place with "
            "room that you may write to."
        ) from error
    finally:
        for parent in reversed(made):
            with contextlib.suppress(OSError):
                parent.rmdir()


def _check(
    target: Path, force: bool, replaceable: Callable[[Path], bool], protected: Sequence[Path]
) -> None:
    if not os.path.lexists(target):
        return
    if not force:
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


def _make_parents(target: Path) -> list[Path]:
    """Make what is missing above ``target``; the folders made, outermost first."""
    missing = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _finish(new: Path) -> None:
    """Have the files on the disk before they get their name, and readable as files usually are.

    safetensors lets their owner alone read them; a server often runs as somebody else.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in [new, *new.rglob("*")] if new.is_dir() else [new]:
        if path.is_file():
            path.chmod(0o666 & ~mask)
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _put(new: Path, target: Path, *, old: Path) -> None:
    replaced = os.path.lexists(target)
    if replaced:
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if replaced:
            old.rename(target)
        raise

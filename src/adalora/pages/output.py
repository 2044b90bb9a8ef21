"""A report's folder: the page, its pictures, and a list of them, which tells ours from the user's.

A report takes the place of an earlier one as long as every file that it replaces or removes is as
the earlier one left it; anything else in the way is the user's, and stays unless asked otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from adalora.errors import UserError
from adalora.pages.render import Page

__all__ = ["MANIFEST", "write_page"]

MANIFEST = "report_files.json"


def write_page(page: Page, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the page as ``index.html``, its pictures to ``pictures/`` and the list of both.

    Args:
        page: rendered.
        folder: made if need be.
        overwrite: replace files that no earlier report of ours wrote, or that were changed since.

    Returns:
        The files, the page first.

    Raises:
        UserError: if a file is in the way, or the folder cannot be written.
    """
    files = {"index.html": page.html.encode()}
    for picture in page.pictures:
        files[f"pictures/{picture.name}.svg"] = picture.svg.encode()
        files[f"pictures/{picture.name}.png"] = picture.png
    try:
        earlier = _earlier(folder)
        ours = {name for name, checksum in earlier.items() if _has(folder / name, checksum)}
        in_the_way = [name for name in files if (folder / name).exists() and name not in ours]
        if in_the_way and not overwrite:
            several = f" and {len(in_the_way) - 1} more files" if len(in_the_way) > 1 else ""
            raise UserError(
                f"{folder} holds {in_the_way[0]}{several}, not written by an earlier report, or "
                "changed since; choose another folder by -o, or replace by --overwrite."
            )
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        # The list first: a report that is cut off leaves files that the next one knows as ours.
        checksums = {name: _checksum(content) for name, content in files.items()}
        kept = {name: earlier[name] for name in ours if name not in files}
        _write(folder / MANIFEST, _listing({**kept, **checksums}))
        for name, content in files.items():
            _write(folder / name, content)
        for name in kept:
            (folder / name).unlink()
        _write(folder / MANIFEST, _listing(checksums))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"The report could not be written to {folder} ({reason}); choose another folder by -o."
        ) from error
    return [folder / name for name in files]


def _earlier(folder: Path) -> Mapping[str, str]:
    """File -> checksum of the report that is there; only names that a report would write."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        files = dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: str(checksum)
        for name, checksum in files.items()
        if name == "index.html" or (name.startswith("pictures/") and ".." not in name)
    }


def _has(path: Path, checksum: str) -> bool:
    return path.is_file() and not path.is_symlink() and _checksum(path.read_bytes()) == checksum


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _listing(checksums: Mapping[str, str]) -> bytes:
    content = {"made_by": "adalora report", "files": dict(sorted(checksums.items()))}
    return (json.dumps(content, indent=2) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)

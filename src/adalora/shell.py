"""What to type into a shell next: programs of this environment and paths, as short as they work.

A shell need not know the environment that a program runs in: ``scripts/quickstart.sh`` makes one,
uses its Python and leaves the shell as it was.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


def program(name: str) -> str:
    """How a program of the running environment is typed from the working directory.

    Args:
        name: such as ``adalora``, ``tensorboard``, ``pip``; ``python`` is the running interpreter.

    Returns:
        The bare name where the shell finds the environment's own under it, or where the environment
        has none; else the path, such as ``.venv/bin/adalora`` (``.venv\\Scripts\\adalora.EXE`` on
        Windows), quoted if need be.
    """
    names = [name]
    if name == "python" and sys.executable:
        names.append(Path(sys.executable).name)  # in some environments it is python3 only
    folders = os.pathsep.join((os.path.dirname(sys.executable), sysconfig.get_path("scripts")))
    for each in names:
        own, found = shutil.which(each, path=folders), shutil.which(each)
        if own is None:
            continue
        # Not the files: every environment's python is a link to the same one.
        if found is not None and os.path.samefile(os.path.dirname(own), os.path.dirname(found)):
            return each
        folder = Path(os.path.realpath(os.path.dirname(own)))
        return typed(short_path(folder / os.path.basename(own), program=True))
    return name


def short_path(path: Path, *, program: bool = False) -> str:
    """The path as seen from the working directory, or in full where that is shorter.

    Args:
        path: of a file or a folder.
        program: with a separator even where it lies in the working directory itself, as a shell
            looks for a bare name elsewhere.
    """
    whole = os.path.abspath(path)
    try:
        relative = os.path.relpath(whole)
    except ValueError:  # on another drive
        return whole
    if program and os.path.dirname(relative) == "":
        relative = os.path.join(os.curdir, relative)
    return min(relative, whole, key=len)


def typed(word: str | Path) -> str:
    """A word of a command, quoted if need be."""
    return subprocess.list2cmdline([str(word)]) if os.name == "nt" else shlex.quote(str(word))


def lines_of(command: str, width: int) -> list[str]:
    """A command over lines of at most ``width`` columns, so that it survives copying from them.

    All but the last end in the mark of continuation; a word that is longer than a line, or quoted
    with spaces, stays whole.
    """
    lines = [""]
    for word in re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", command):
        # Two columns for the mark.
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width - 2:
            lines.append(f"  {word}")
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]

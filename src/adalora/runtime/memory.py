"""Memory of the process and its container: what glibc does with freed blocks, what is available."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

# The names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
#: Blocks of this size or more, such as the embeddings of a large vocabulary, still go back at once;
#: the second for a glibc that allows no more.
_LARGE = (2**28, 2**25)


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Ask glibc to keep freed memory for the next step; peak memory stays what it was.

    A training step allocates and frees the same few hundred megabytes, in the same sizes, again
    and again. glibc gives much of it back to the system after each step and asks for it anew in the
    next, where every page costs a fault and is filled with zeros first. Nothing is done where the C
    library is another one, or where the user has settings of malloc's in the environment.

    Args:
        environment: ``os.environ``.

    Returns:
        Whether it was asked for.
    """
    own = any(name.startswith("MALLOC_") and name.endswith("_") for name in environment)
    if own or "glibc.malloc." in environment.get("GLIBC_TUNABLES", ""):
        return False
    # The second alone would end glibc's adaptation of the first, at 128 KiB.
    kept = any(_mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGE)
    return kept and _mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_freed_memory_back() -> None:
    """Have the C library return large blocks to the system when they are freed.

    glibc keeps them for later by and by, and of a sharded base every gathered layer would stay:
    twelve layers of the base model's shape took 1.9 GB in training instead of 1.1.
    """
    _mallopt(_M_MMAP_THRESHOLD, 2**20)


def _mallopt(parameter: int, value: int) -> bool:
    """Whether glibc took the setting; False with another C library."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(parameter, value) == 1)


# ---- what is available ----

#: Files of a control group: its limit, what it uses, and in ``memory.stat`` the page cache in that.
_FILES = {
    "v2": ("memory.max", "memory.current", ("active_file", "inactive_file")),
    "v1": (
        *("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("total_active_file", "total_inactive_file"),
    ),
}


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that processes started here can take, by the host and by the control groups' limits.

    The page cache that a group's files fill counts as available, as it does on the host.

    Args:
        root: where ``proc/self/cgroup`` and ``sys/fs/cgroup`` are looked for.
    """
    import psutil  # type: ignore[import-untyped]

    found = [int(psutil.virtual_memory().available)]
    for folder, version in _control_groups(root):
        limit_file, usage_file, cache = _FILES[version]
        try:
            limit = int((folder / limit_file).read_text())
            usage = int((folder / usage_file).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            stat = dict(line.split() for line in lines)
            found.append(limit - usage + sum(int(stat.get(name, 0)) for name in cache))
        except (OSError, ValueError):  # no such group here, or "max": no limit
            continue
    return max(min(found), 0)


def _control_groups(root: Path) -> Iterator[tuple[Path, str]]:
    """Folders of the memory groups of this process and those above, with the version of each."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mount = root / "sys/fs/cgroup"
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            top, version = mount, "v2"
        elif "memory" in controllers.split(","):
            top, version = mount / "memory", "v1"
        else:
            continue
        # In a container the place may be the host's name for what is mounted at the top.
        group = top / place.strip("/")
        while group != top:
            yield group, version
            group = group.parent
        yield top, version

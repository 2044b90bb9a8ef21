"""The machine of a run: what it is and what code runs there, the memory it has, keeps and took."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

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

    The page cache that a group's files fill counts as available, as it does on the host. ``root``
    has ``proc/self/cgroup`` and ``sys/fs/cgroup``.
    """
    import psutil  # type: ignore[import-untyped]

    found = [int(psutil.virtual_memory().available)]
    for folder, kind in _control_groups(root):
        limit_file, usage_file, cache = _FILES[kind]
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
            top, kind = mount, "v2"
        elif "memory" in controllers.split(","):
            top, kind = mount / "memory", "v1"
        else:
            continue
        # In a container the place may be the host's name for what is mounted at the top.
        group = top / place.strip("/")
        while group != top:
            yield group, kind
            group = group.parent
        yield top, kind


def hardware(*, device: Any, precision: str, processes: int) -> dict[str, Any]:
    """The machine of this process, one of ``processes``, whose torch ``device`` trains.

    ``precision`` is the number type of the products, such as "bfloat16".
    """
    import torch

    on_gpu = device.type == "cuda"
    return {
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "precision": precision,
        "processes": processes,
    }


def processor_name() -> str:
    """Model of the processor, as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def versions(*extra: str) -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers, and of ``extra``."""
    import loralib
    from adalora import __version__

    packages = ("torch", "transformers", *extra)
    return {
        "python": platform.python_version(),
        "adalora": __version__,
        "loralib": loralib.__version__,
        **{name: version(name) for name in packages},
    }


def revision() -> str | None:
    """Git revision of this code, "+changes" behind it if files differ; None outside a checkout."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(here.parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy may lie in somebody else's checkout.
    if git("ls-files", "--error-unmatch", here.name) is None:
        return None
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return head and (f"{head}+changes" if changed else head)


def peak_memory(device: Any) -> int | None:
    """Bytes: the most allocated on a CUDA ``device``, or this process's largest resident set."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

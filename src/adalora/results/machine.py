"""What a run was made with: the machine, the versions, the code, and the memory it took."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def hardware(*, device: Any, precision: str, processes: int) -> dict[str, Any]:
    """The machine of this process.

    Args:
        device: the torch device that trains.
        precision: number type of the products, such as "bfloat16".
        processes: of the whole job.
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
    from adalora import __version__

    packages = ("torch", "transformers", "loralib", *extra)
    return {
        "python": platform.python_version(),
        "adalora": __version__,
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

"""Freed memory stays with the process, for the next step to use.

A training step allocates and frees the same few hundred megabytes, in the same sizes, again and
again. glibc gives much of it back to the system after each step and asks for it anew in the next,
where every page costs a fault and is filled with zeros first.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Mapping

__all__ = [
    "keep_freed_memory",
]

# The names and numbers of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
#: Blocks of this size or more, such as the embeddings of a large vocabulary, still go back at once;
#: the second for a glibc that allows no more.
_LARGE = (2**28, 2**25)


def keep_freed_memory(environment: Mapping[str, str]) -> bool:
    """Ask glibc to keep freed memory; peak memory stays what it was.

    Nothing is done where the C library is another one, or where the user has settings of malloc's
    in the environment.

    Args:
        environment: ``os.environ``.

    Returns:
        Whether it was asked for.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    own = any(name.startswith("MALLOC_") and name.endswith("_") for name in environment)
    if own or "glibc.malloc." in environment.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # The second alone would end glibc's adaptation of the first, at 128 KiB.
    kept = any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _LARGE)
    return kept and mallopt(_M_TRIM_THRESHOLD, _NEVER) == 1


#: glibc's name for the size from which a block is mapped on its own (malloc.h).
_MMAP_THRESHOLD = -3


def _give_freed_memory_back() -> None:
    """Have the C library return large blocks to the system when they are freed.

    glibc keeps them for later by and by, and every gathered layer would stay: twelve layers of the
    base model's shape took 1.9 GB in training instead of 1.1.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 20)

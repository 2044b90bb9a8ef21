"""Freed memory stays with the process, unless its user has settled that."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from adalora.training import keep_freed_memory

FAULTS = """
import os, resource, sys
import torch
from adalora.training import keep_freed_memory
asked = keep_freed_memory(os.environ) if sys.argv[1] == "keep" else None
def step():
    blocks = [torch.ones(2**19) for _ in range(20)]
step(); step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(asked, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(word: str) -> tuple[str, int]:
    """What was answered, and the page faults of five times twenty blocks of 2 MiB."""
    words = [sys.executable, "-c", FAULTS, word]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    asked, count = done.stdout.split()
    return asked, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    asked, kept = faults("keep")
    _, given_back = faults("leave")
    assert asked == "True"
    # 100 blocks of 512 pages each, of which none has to be asked for again.
    assert kept < 1_000
    assert given_back > 10_000


@pytest.mark.parametrize(
    "own",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}],
)
def test_the_users_own_settings_stand(own: dict[str, str]) -> None:
    assert keep_freed_memory(own) is False


def test_it_is_left_alone_where_the_library_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory({}) is False

"""Freed memory stays with the process, unless its user has settled that."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from adalora.runtime.memory import keep_freed_memory

BLOCKS = 20
MEBIBYTES = 2 * BLOCKS
STEP = f"""
import os, resource
import torch
from adalora.runtime.memory import keep_freed_memory
asked = keep_freed_memory(os.environ)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
def step():
    blocks = [torch.ones(2**19) for _ in range({BLOCKS})]
    return resident()
step(); step()
print(asked, step() - resident())
"""


def given_back(**own: str) -> tuple[str, float]:
    """What was answered, and the MiB that the process no longer holds after a step."""
    here = {name: word for name, word in os.environ.items() if not name.startswith("MALLOC_")}
    here.pop("GLIBC_TUNABLES", None)
    words = [sys.executable, "-c", STEP]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=here | own)
    asked, count = done.stdout.split()
    return asked, float(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    asked, count = given_back()
    assert asked == "True"
    assert count < 0.1 * MEBIBYTES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_a_user_who_wants_memory_given_back_at_once_gets_that() -> None:
    asked, count = given_back(MALLOC_MMAP_THRESHOLD_="65536")
    assert asked == "False"
    assert count > 0.9 * MEBIBYTES


@pytest.mark.parametrize(
    "own",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536"}],
)
def test_the_users_own_settings_stand(own: dict[str, str]) -> None:
    assert keep_freed_memory(own) is False


def test_it_is_left_alone_where_the_library_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory({}) is False

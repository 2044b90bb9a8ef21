"""Freed memory stays with the process, unless its user has settled that; limits are respected."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from adalora.runtime.machine import available_memory, keep_freed_memory

BLOCKS = 20
MEBIBYTES = 2 * BLOCKS
STEP = f"""
import os, resource
import torch
from adalora.runtime.machine import available_memory, keep_freed_memory
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


MIB = 2**20
#: Control group's files -> content, and the MiB available then, of 1000 on the host.
GROUPS = {
    "v2": (
        {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/step/memory.max": "max",
            "sys/fs/cgroup/job/step/memory.current": f"{50 * MIB}",
            "sys/fs/cgroup/job/step/memory.stat": "inactive_file 0",
            "sys/fs/cgroup/job/memory.max": f"{300 * MIB}",
            "sys/fs/cgroup/job/memory.current": f"{200 * MIB}",
            "sys/fs/cgroup/job/memory.stat": (
                f"anon 9\nactive_file {20 * MIB}\ninactive_file {60 * MIB}"
            ),
        },
        180,
    ),
    "v2 in a container": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{300 * MIB}",
            "sys/fs/cgroup/memory.current": f"{100 * MIB}",
            "sys/fs/cgroup/memory.stat": "anon 1",
        },
        200,
    ),
    "v1 under the host's name": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/x\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{300 * MIB}",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{290 * MIB}",
            "sys/fs/cgroup/memory/memory.stat": f"cache 1\ntotal_inactive_file {30 * MIB}",
        },
        40,
    ),
    "v1 without a limit": (
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{290 * MIB}",
            "sys/fs/cgroup/memory/memory.stat": "cache 1",
        },
        1000,
    ),
    "more used than is allowed": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": f"{10 * MIB}",
            "sys/fs/cgroup/memory.current": f"{11 * MIB}",
            "sys/fs/cgroup/memory.stat": "",
        },
        0,
    ),
    "no control groups": ({}, 1000),
}


@pytest.mark.parametrize("name", GROUPS)
def test_what_is_available_is_the_least_of_the_host_and_every_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files, expected = GROUPS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    host = SimpleNamespace(available=1000 * MIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: host)
    assert available_memory(tmp_path) == expected * MIB

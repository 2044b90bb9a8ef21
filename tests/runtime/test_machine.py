"""What is told of the machine and the code is what the system itself says."""

from __future__ import annotations

import resource
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from adalora.runtime.machine import hardware, peak_memory, revision, versions


def test_the_revision_is_gits_and_says_when_files_differ() -> None:
    def git(*words: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        if done.returncode:
            pytest.skip("needs a git checkout")
        return done.stdout.strip()

    head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno", ".")
    whole = git("-C", git("rev-parse", "--show-toplevel"), "status", "--porcelain", "-uno")
    found = revision()
    if found is None:
        pytest.skip("the tests run on an installed copy, which has no revision")
    assert found == head + ("+changes" if changed or whole else "")


def test_versions_are_those_installed() -> None:
    found = versions("peft")
    assert found["torch"] == version("torch")
    assert found["peft"] == version("peft")
    assert set(found) == {"python", "adalora", "torch", "transformers", "loralib", "peft"}


def test_hardware_tells_what_the_process_computes_with() -> None:
    found = hardware(device=torch.device("cpu"), precision="bfloat16", processes=2)
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["precision"], found["processes"]) == ("cpu", "bfloat16", 2)
    assert found["cores"] >= 1
    assert found["processor"]


def test_peak_memory_is_in_bytes_and_grows_with_what_is_held() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before is not None
    assert before >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1000
    held = torch.ones(before // 4)  # four bytes each: as much again
    after = peak_memory(torch.device("cpu"))
    assert after is not None
    assert after > before + held.numel()

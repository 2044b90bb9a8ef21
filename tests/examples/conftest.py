"""The example program in this process, and in processes of its own as users start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.program import PROGRAM, PROJECT_ROOT, SMALL, mnli_run

Start = Callable[..., "subprocess.CompletedProcess[str]"]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def environment() -> dict[str, str]:
    """That of a user's shell, in which no launcher is at work."""
    result = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # Which process of which job this is belongs to the launcher alone.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        result.pop(name, None)
    folder = os.path.dirname(sys.executable)
    result["PATH"] = f"{folder}{os.pathsep}{result['PATH']}"
    return result


def start(
    words: Sequence[str], *, expect: int = 0, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit status must be the expected one."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=cwd or PROJECT_ROOT,
        timeout=timeout,
    )
    assert done.returncode == expect, (done.stdout + done.stderr)[-4000:]
    return done


def launch(*flags: str, processes: int = 1, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run the program: alone, or through torchrun with several processes."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        launcher += ["--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return start([*launcher, str(PROGRAM), *flags], **kwargs)  # type: ignore[arg-type]


def on_nodes(nodes: Sequence[Sequence[str]]) -> None:
    """Run the program as one job of several nodes with a process each, given each node's flags."""
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(nodes)}"]
    launcher += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
    running = [
        subprocess.Popen(
            [*launcher, f"--node_rank={rank}", str(PROGRAM), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            cwd=PROJECT_ROOT,
        )
        for rank, flags in enumerate(nodes)
    ]
    outputs = [node.communicate(timeout=300)[0] for node in running]
    for node, output in zip(running, outputs, strict=True):
        assert node.returncode == 0, output[-4000:]


@pytest.fixture(scope="session")
def run_on_nodes() -> Callable[..., None]:
    return on_nodes


@pytest.fixture(scope="session")
def port() -> Callable[[], str]:
    """A port that is free now."""
    return free_port


@pytest.fixture(scope="session")
def program() -> Path:
    return PROGRAM


@pytest.fixture(scope="session")
def start_program() -> Start:
    """Starts the program in a process of its own, or in several through torchrun."""
    return launch


@pytest.fixture(scope="session")
def run_command() -> Start:
    return start


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of mini-mnli with training, evaluation and prediction, and what it printed."""
    return mnli_run(tmp_path_factory)

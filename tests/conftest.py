"""Fixtures that every room's tests may use."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    # A shell's background job ignores SIGINT, and so would every process that a test starts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def project_root() -> Path:
    return PROJECT_ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Real GLUE files, the recorded trajectory and the real tokenizer, where they are at hand."""
    folder = PROJECT_ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared with real GLUE data, absent on this machine")
    return folder

"""Fixtures that every room's tests may use."""

from __future__ import annotations

import gc
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT_ROOT = Path(__file__).resolve().parents[1]
#: Large files that a clone does not have.
SHARED = PROJECT_ROOT.parent / "shared"

# The suite asks no network; the libraries read this when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure() -> None:
    # A shell's background job ignores SIGINT, and so would every process that a test starts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that the workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def imported_for_good() -> None:
    """Keep the collector from what lives on: each ``Trainer.train`` has it look through all else.

    That is a million objects of the libraries, and takes longer than a dozen steps of training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def project_root() -> Path:
    return PROJECT_ROOT


@dataclass(frozen=True)
class Glue:
    """GLUE in the layout of the official download.

    Args:
        folder: for ``--data_dir``.
        is_official: whether these are the real files, and not the miniature in their layout.
    """

    folder: Path
    is_official: bool


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Glue:
    """The official files where they are at hand (in ``../shared``), else a small stand-in."""
    if (SHARED / "glue_data").is_dir():
        return Glue(SHARED / "glue_data", is_official=True)
    from tests.stand_ins import write_glue

    folder: Path = tmp_path_factory.mktemp("glue-data")
    write_glue(folder)
    return Glue(folder, is_official=False)


@pytest.fixture(scope="session")
def deberta_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeBERTaV3's tokenizer where it is at hand, else a small one of the same layout."""
    if (SHARED / "deberta-v3-tokenizer").is_dir():
        return SHARED / "deberta-v3-tokenizer"
    from tests.stand_ins import write_tokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder

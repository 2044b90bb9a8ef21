"""Tokens: kept between starts, and made anew when anything that decides them changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate import PartialState

from adalora.glue import DataSource, load_data
from adalora.pretrained import load_tokenizer
from adalora.training import DataArguments, tokenise


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "adalora-tokens"


def tokens(**settings: Any) -> dict[str, Any]:
    data = load_data(DataSource(task_name="mini-rte"))
    arguments = DataArguments(task_name="mini-rte", **settings)
    return tokenise(data, load_tokenizer("nano"), arguments)


def test_a_second_start_reads_what_the_first_one_wrote(cache: Path) -> None:
    first = tokens()
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")}
    assert len(files) == len(first)
    second = tokens()
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")} == files
    assert first["train"][:] == second["train"][:]
    tokens(overwrite_cache=True)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")} != files


def test_only_the_first_process_of_a_node_makes_the_tokens_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens()
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")}
    monkeypatch.setattr(PartialState, "is_local_main_process", False)
    tokens(overwrite_cache=True)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")} == files


@pytest.mark.parametrize(
    "changed", [{"max_seq_length": 12}, {"pad_to_max_length": True}, {"max_train_samples": 20}]
)
def test_other_settings_take_other_tokens(cache: Path, changed: dict[str, Any]) -> None:
    plain = tokens()["train"]
    count = len(list(cache.iterdir()))
    other = tokens(**changed)["train"]
    assert len(list(cache.iterdir())) > count
    assert other["input_ids"][:] != plain["input_ids"][:]
    assert tokens()["train"][:] == plain[:]


def test_a_cache_that_cannot_be_written_to_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    assert len(tokens()["train"]) > 0

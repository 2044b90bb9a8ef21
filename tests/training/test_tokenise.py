"""Tokens: kept between starts, and made anew when anything that decides them changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate import PartialState

from adalora.glue.load import DataSource, load_data
from adalora.pretrained.loading import load_tokenizer
from adalora.training.arguments.inputs import DataArguments
from adalora.training.tokenise import tokenise


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


def test_the_tokenizer_is_saved_as_it_was_loaded_whether_its_tokens_were_kept_or_not(
    cache: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer("nano")
    data = load_data(DataSource(task_name="mini-rte"))
    saved = []
    for folder in ("loaded", "made", "kept"):
        if folder != "loaded":
            tokenise(data, tokenizer, DataArguments(task_name="mini-rte", max_seq_length=24))
        tokenizer.save_pretrained(tmp_path / folder)
        saved.append((tmp_path / folder / "tokenizer.json").read_bytes())
    assert saved[0] == saved[1] == saved[2]


def test_only_the_first_process_of_a_node_makes_the_tokens_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens()
    files = {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")}
    monkeypatch.setattr(PartialState, "is_local_main_process", False)
    tokens(overwrite_cache=True)
    assert {path: path.stat().st_mtime_ns for path in cache.glob("*.arrow")} == files


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"no tokens at all",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-40],
        lambda content: content[:8] + b"\xff" * 40 + content[48:],
    ],
)
def test_a_damaged_cache_is_named_and_made_anew(
    cache: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    first = tokens()
    expected = {name: split[:] for name, split in first.items()}
    for path in cache.iterdir():
        content = path.read_bytes()
        # Another file in its place, as after a crash: the old one is still mapped into memory.
        path.unlink()
        path.write_bytes(damage(content))
    again = tokens()
    assert {name: split[:] for name, split in again.items()} == expected
    assert caplog.text.count("is damaged") == len(expected)
    caplog.clear()
    assert {name: split[:] for name, split in tokens().items()} == expected
    assert not caplog.text

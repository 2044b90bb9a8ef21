"""Every reader against damaged files: read, or refused in a sentence.

The long form is fuzz_readers.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora.artefact.description import Description
from adalora.data.column_choice import choose_columns
from adalora.data.table_reader import Table, Texts, open_table
from adalora.errors import UserError
from adalora.glue.load import DataSource, load_data
from adalora.storage.files import read_json

NAMES = (
    *("tsv", "training table", "rows to predict", "artefact", "checkpoint", "torch.save file"),
    *("PEFT adapter", "base model", "file of flags"),
)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused_in_a_sentence(
    fuzz_readers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fuzzer = fuzz_readers.Fuzzer(name, tmp_path, seed=6)
    for _ in range(10 if name in ("artefact", "base model") else 40):
        fuzzer.try_one()
    assert fuzzer.sound_or_told, (fuzzer.tally.outcomes, fuzzer.tally.crashes)
    assert fuzzer.tally.outcomes["refused"] > 0


def test_the_script_fuzzes_every_reader_that_is_tested(fuzz_readers: Any) -> None:
    assert tuple(fuzz_readers.READERS) == NAMES


def tried(work: Callable[[], Any], place: object) -> Any:
    """What ``work`` gives; None if it refuses with a sentence, which names the place."""
    refusal = None
    try:
        return work()
    except UserError as error:
        refusal = str(error)
    assert str(place) in refusal
    return None


SMALL = settings(max_examples=40, deadline=None, derandomize=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
ENDINGS = st.sampled_from(("csv", "tsv", "json", "jsonl", "parquet"))


@given(content=st.binary(max_size=200), ending=ENDINGS)
@SMALL
def test_any_bytes_are_a_table_or_a_sentence_with_the_files_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"t.{ending}"
    path.write_bytes(b"text,label\n" + content if ending == "csv" else content)
    data = tried(lambda: load_data(DataSource(train_file=str(path), need=())), path)
    if data is not None:
        assert all(isinstance(text, str) for text in data.splits["train"][data.sentence1_key])
    with path.open("rb") as stream:
        rows = tried(lambda: texts(open_table(stream, str(path), ending)), path) or []
    assert all(isinstance(text, str) for row in rows for text in row.texts)


def texts(table: Table) -> list[Texts]:
    """All rows, as prediction reads them."""
    columns = choose_columns(table, with_label=False).texts if table.columns else ()
    return list(table.texts(columns))


@given(rows=st.lists(st.dictionaries(st.sampled_from(("text", "label", "x")), JSON), max_size=4))
@SMALL
def test_any_objects_are_a_table_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("objects") / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tried(lambda: load_data(DataSource(train_file=str(path), need=())), path)
    assert data is None or len(data.splits["train"]) == len(rows)


@pytest.fixture(scope="module")
def description(fuzz_readers: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real artefact says of itself."""
    folder = tmp_path_factory.mktemp("artefact") / "model"
    fuzz_readers._artefact(folder)
    return read_json(folder / "adalora.json")


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_value_in_a_description_is_believed_or_refused(
    description: dict[str, Any], data: st.DataObject
) -> None:
    changed = json.loads(json.dumps(description))
    place, name = changed, data.draw(st.sampled_from(sorted(changed)))
    if isinstance(place[name], dict) and place[name] and data.draw(st.booleans()):
        place = place[name]
        name = data.draw(st.sampled_from(sorted(place)))
    place[name] = data.draw(JSON)
    read = tried(lambda: Description.from_json(changed, source="adalora.json"), "adalora.json")
    assert read is None or all(".." not in file.split("/") for file in read.files)

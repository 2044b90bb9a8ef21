"""The names that the documentation gives are imported as they are written, old ones too."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

MOVED = [
    ("adalora.checkpoints", "load_artefact", "adalora.artefact"),
    ("adalora.checkpoints", "load_lora", "adalora.artefact"),
    ("adalora.deberta", "patch", "adalora.pretrained.deberta"),
    ("adalora.deberta.packing", "Packing", "adalora.pretrained.deberta.packing"),
    ("adalora.pages", "write_report", "adalora.report"),
    ("adalora.runs", "RunRecord", "adalora.results"),
]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("adalora", ["load"]),
        ("adalora.adapters", ["add_lora", "freeze_base"]),
        ("adalora.artefact", ["load_artefact", "save_artefact"]),
        ("adalora.builtin", ["generate", "nano_path"]),
        ("adalora.pretrained", ["load_classifier", "load_tokenizer"]),
    ],
)
def test_documented_names_are_there(module: str, names: list[str]) -> None:
    for name in names:
        assert callable(getattr(importlib.import_module(module), name))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module(module).nothing  # noqa: B018


@pytest.mark.parametrize(("old", "name", "new"), MOVED)
def test_a_room_that_has_moved_is_imported_by_its_old_name_with_a_note(
    old: str, name: str, new: str
) -> None:
    for known in [known for known in sys.modules if known.startswith(old)]:
        del sys.modules[known]
    with pytest.warns(DeprecationWarning, match=f"{old} is now {new}; import that") as caught:
        found = importlib.import_module(old)
    assert caught
    # The very module: a class of it is the same class by either name.
    assert found is importlib.import_module(new)
    assert getattr(found, name)
    assert found.__spec__ is not None
    assert (found.__name__, found.__spec__.name) == (new, new)


def test_a_module_that_is_in_neither_room_is_not_found() -> None:
    with (
        pytest.warns(DeprecationWarning, match="is now"),
        pytest.raises(ModuleNotFoundError, match=r"nothing is now in adalora\.report"),
    ):
        importlib.import_module("adalora.pages.nothing")


def test_a_statement_as_old_programs_have_it_works_in_a_fresh_process_and_says_where() -> None:
    program = "from adalora.runs import RunRecord\nprint(RunRecord.__module__)"
    result = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "adalora.results.record"
    assert "<string>:1: DeprecationWarning: adalora.runs is now adalora.results" in result.stderr

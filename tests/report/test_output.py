"""The folder of a report: earlier reports are replaced, what a user made is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adalora.commands.show import report
from adalora.errors import UserError
from adalora.report.drawing import Picture
from adalora.report.page import MANIFEST, Page, write_page


def page(*names: str, html: str = "<p>page</p>") -> Page:
    pictures = [Picture(name, "title", "words", f"<svg>{name}</svg>", b"png") for name in names]
    return Page(html, tuple(pictures))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_report_replaces_the_earlier_one_with_its_stale_pictures(tmp_path: Path) -> None:
    write_page(page("old", "both"), tmp_path)
    write_page(page("both", html="new"), tmp_path)
    assert files(tmp_path) == {
        "index.html",
        MANIFEST,
        "pictures/both.svg",
        "pictures/both.png",
    }
    assert (tmp_path / "index.html").read_text() == "new"


def test_files_that_are_no_report_s_stay(tmp_path: Path) -> None:
    write_page(page("one"), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "pictures" / "mine.png").write_text("mine")
    write_page(page("two"), tmp_path)
    assert {"notes.txt", "pictures/mine.png"} <= files(tmp_path)


@pytest.mark.parametrize("name", ["index.html", "pictures/one.svg"])
@pytest.mark.parametrize("changed", [False, True])
def test_a_file_of_the_user_in_the_way_is_kept_unless_told(
    tmp_path: Path, name: str, changed: bool
) -> None:
    if changed:
        write_page(page("one"), tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        write_page(page("one"), tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    write_page(page("one"), tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() != "mine"


def test_a_changed_picture_that_is_not_needed_any_more_stays(tmp_path: Path) -> None:
    write_page(page("old"), tmp_path)
    (tmp_path / "pictures" / "old.svg").write_text("mine")
    write_page(page("new"), tmp_path)
    assert (tmp_path / "pictures" / "old.svg").read_text() == "mine"
    assert not (tmp_path / "pictures" / "old.png").exists()


def test_a_list_that_names_files_elsewhere_removes_nothing(tmp_path: Path) -> None:
    write_page(page("one"), tmp_path / "report")
    outside = tmp_path / "outside.txt"
    outside.write_text("<p>page</p>")
    manifest = tmp_path / "report" / MANIFEST
    text = manifest.read_text()
    for name in ("../outside.txt", "pictures/../../outside.txt", str(outside)):
        manifest.write_text(text.replace("index.html", name))
        write_page(page("one"), tmp_path / "report", overwrite=True)
        assert outside.exists()


def test_a_file_where_the_folder_should_be_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(UserError, match="could not be written"):
        write_page(page(), tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_the_command_writes_into_the_run_s_folder_by_default(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make.write_run(tmp_path / "run", make.record())
    assert report([str(source)]) == 0
    assert (source / "report" / "index.html").is_file()
    assert str(source / "report" / "index.html") in capsys.readouterr().out
    (source / "report" / "index.html").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        report([str(source)])
    assert report([str(source), "--overwrite"]) == 0


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_told_with_what_to_type(tmp_path: Path, library: str) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"from adalora.cli import main\nsys.exit(main(['report', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"draws with {library}, which is not installed" in done.stderr
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr

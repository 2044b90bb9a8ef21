"""A target is complete or as it was, whatever happens on the way."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from adalora.errors import UserError
from adalora.storage.atomic import atomic_write, complete_or_absent


def anything(path: Path) -> bool:
    return True


def nothing(path: Path) -> bool:
    return False


def fill(folder: Path, text: str = "new") -> None:
    folder.mkdir()
    (folder / "config.json").write_text(text)


def test_the_result_appears_with_its_parents(tmp_path):
    target = tmp_path / "a" / "b" / "out"
    with complete_or_absent(target, overwrite=False, replaceable=nothing) as new:
        assert not target.exists()
        fill(new)
    assert (target / "config.json").read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def write(target: Path, *, error: BaseException | None = None, **settings) -> None:
    """Write a new folder to ``target``, or fail once it is written."""
    settings = {"overwrite": False, "replaceable": nothing} | settings
    with complete_or_absent(target, **settings) as new:
        fill(new)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_not_even_the_parents(tmp_path, error):
    with pytest.raises(type(error)):
        write(tmp_path / "a" / "b", error=error)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_one_with_overwrite(tmp_path):
    fill(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="wrong"):
        write(tmp_path / "out", error=ValueError("wrong"), overwrite=True, replaceable=anything)
    assert (tmp_path / "out" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_replaced_whole_with_overwrite(tmp_path):
    fill(tmp_path / "out", "old")
    (tmp_path / "out" / "extra").write_text("old")
    with complete_or_absent(tmp_path / "out", overwrite=True, replaceable=anything) as new:
        fill(new)
        assert (tmp_path / "out" / "extra").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overwrite": False, "replaceable": anything}, "exists already.*--overwrite"),
        ({"overwrite": True, "replaceable": nothing}, "does not look like an earlier result"),
    ],
)
def test_what_is_there_stays_otherwise(tmp_path, settings, message):
    fill(tmp_path / "out", "old")
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out", **settings)
    assert (tmp_path / "out" / "config.json").read_text() == "old"


def test_what_is_read_from_is_never_replaced(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    for target in (tmp_path / "run", tmp_path / "run" / "model", tmp_path):
        with pytest.raises(UserError, match="which this reads from"):
            write(
                target, overwrite=True, replaceable=anything, protected=[tmp_path / "run" / "model"]
            )


def test_of_two_writers_the_first_wins_and_the_second_is_told(tmp_path):
    out = tmp_path / "out"

    def race() -> None:
        with complete_or_absent(out, overwrite=False, replaceable=nothing) as second:
            with complete_or_absent(out, overwrite=False, replaceable=nothing) as first:
                fill(first, "first")
            fill(second, "second")

    with pytest.raises(UserError, match="exists already"):
        race()
    assert (out / "config.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_told_in_a_sentence(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match=r"out could not be written \(No space left on device\)"):
        write(tmp_path / "a" / "out", error=full)
    assert list(tmp_path.iterdir()) == []


def test_the_old_one_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    fill(tmp_path / "out", "old")
    rename = Path.rename

    def fail_for_new(self, target):
        if self.name == "out" and self.parent != tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    with pytest.raises(UserError, match="Input/output error"):
        write(tmp_path / "out", overwrite=True, replaceable=anything)
    assert (tmp_path / "out" / "config.json").read_text() == "old"


@pytest.mark.parametrize("place", ["file/out", "/proc/out", "n" * 300])
def test_a_place_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write(tmp_path / place)


def test_files_get_the_usual_permissions(tmp_path):
    with complete_or_absent(tmp_path / "out", overwrite=False, replaceable=nothing) as new:
        fill(new)
        (new / "config.json").chmod(0o600)
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out" / "config.json").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [None, OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_is_replaced_whole_or_stays_and_nothing_is_left_next_to_it(tmp_path, error):
    path = tmp_path / "values.json"
    path.write_text("old")
    outcome = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with outcome, atomic_write(path) as new:
        new.write_text("new")
        new.chmod(0o600)
        assert path.read_text() == "old"
        if error is not None:
            raise error
    assert path.read_text() == ("new" if error is None else "old")
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]

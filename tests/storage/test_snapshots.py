"""Checkpoint folders: whole or absent, and every kind of damage recognised by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adalora.errors import UserError
from adalora.storage.snapshots import (
    FORMAT_VERSION,
    MANIFEST,
    DamagedCheckpointError,
    newest_sound,
    publish,
    remove_leftovers,
    rotate,
    snapshots,
    staging_folder,
    verify,
)

FILES = {"weights.bin": b"0123456789", "sub/names.json": b"{}"}


def make(folder: Path, step: int) -> Path:
    target = folder / f"checkpoint-{step}"
    for name, content in FILES.items():
        path = staging_folder(target) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    publish(target, step=step, settings={"seed": 6})
    return target


def change_manifest(checkpoint: Path, **changes: object) -> None:
    path = checkpoint / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_published_verifies_and_says_what_it_is(tmp_path: Path) -> None:
    manifest = verify(make(tmp_path, 12), require=["weights.bin"])
    assert (manifest.step, manifest.settings) == (12, {"seed": 6})
    assert {name: size for name, (size, _) in manifest.files.items()} == {
        "weights.bin": 10,
        "sub/names.json": 2,
    }
    assert names(tmp_path) == ["checkpoint-12"]


def test_until_it_is_published_a_checkpoint_is_absent(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint-3"
    staging_folder(target).mkdir()
    (staging_folder(target) / "weights.bin").write_bytes(b"1")
    assert snapshots(tmp_path) == []
    assert newest_sound(tmp_path) is None
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    make(tmp_path, 1)
    for name in (".checkpoint-2.partial", ".checkpoint-1.removed", ".checkpoint-notes", "notes"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".checkpoint-notes", "checkpoint-1", "notes"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    first = make(tmp_path, 2)
    (first / "weights.bin").write_bytes(b"torn")
    with pytest.raises(DamagedCheckpointError):
        verify(first)
    assert verify(make(tmp_path, 2)).step == 2
    assert names(tmp_path) == ["checkpoint-2"]


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "weights.bin", 7)


def alter_one_bit(checkpoint: Path) -> None:
    (checkpoint / "weights.bin").write_bytes(b"0123456788")


def remove_file(checkpoint: Path) -> None:
    (checkpoint / "sub" / "names.json").unlink()


def remove_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()


def cut_manifest(checkpoint: Path) -> None:
    os.truncate(checkpoint / MANIFEST, 40)


def empty_manifest(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).write_text("[]")


def folder_for_file(checkpoint: Path) -> None:
    (checkpoint / "weights.bin").unlink()
    (checkpoint / "weights.bin").mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, r"weights\.bin has 7 bytes instead of 10"),
        (alter_one_bit, r"weights\.bin is not what was written"),
        (remove_file, r"sub/names\.json is missing"),
        (remove_manifest, r"has no manifest\.json"),
        (cut_manifest, r"manifest\.json is damaged"),
        (empty_manifest, r"manifest\.json is damaged"),
        (folder_for_file, r"weights\.bin is missing"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_is_taken(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    says: str,
) -> None:
    before, last = make(tmp_path, 9), make(tmp_path, 10)
    damage(last)
    with pytest.raises(DamagedCheckpointError, match=f"checkpoint-10.*{says}"):
        verify(last)
    assert newest_sound(tmp_path) == before
    assert "checkpoint-10" in caplog.text
    damage(before)
    with pytest.raises(UserError, match="checkpoint-10, checkpoint-9 are damaged"):
        newest_sound(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sub/../../x", "", "link"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    checkpoint = make(tmp_path, 5)
    (checkpoint / "link").symlink_to("/etc/passwd")
    change_manifest(checkpoint, files={name: {"bytes": 1, "sha256": "0"}})
    for look in (lambda: verify(checkpoint), lambda: newest_sound(tmp_path)):
        with pytest.raises(UserError, match="outside the checkpoint's folder") as caught:
            look()
        assert not isinstance(caught.value, DamagedCheckpointError)


def test_a_newer_format_is_refused_even_if_there_is_an_older_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 4)
    change_manifest(make(tmp_path, 5), format_version=FORMAT_VERSION + 1, files="unknown")
    with pytest.raises(UserError, match=f"checkpoint format {FORMAT_VERSION + 1}.*up to"):
        newest_sound(tmp_path)


def test_a_checkpoint_without_a_required_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"written without optimizer\.safetensors"):
        verify(make(tmp_path, 5), require=["weights.bin", "optimizer.safetensors"])


@pytest.mark.parametrize(
    ("limit", "newest", "protected", "left"),
    [
        (None, 30, [], [9, 10, 20, 30]),
        (0, 30, [], [9, 10, 20, 30]),
        (2, 30, [], [20, 30]),
        (1, 30, [], [30]),
        (2, 30, [9], [9, 30]),
        (1, 30, [10], [10, 30]),
        # 20 and 30 are of a course that was given up when the run was resumed from 9.
        (2, 10, [], [9, 10]),
        (1, 10, [30], [10, 30]),
    ],
)
def test_rotation_keeps_the_newest_and_the_protected(
    tmp_path: Path, limit: int | None, newest: int, protected: list[int], left: list[int]
) -> None:
    made = {step: make(tmp_path, step) for step in (9, 10, 20, 30)}
    rotate(tmp_path, limit, newest=made[newest], protected=[made[step] for step in protected])
    assert [path.name for path in snapshots(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert not [name for name in names(tmp_path) if name.startswith(".")]

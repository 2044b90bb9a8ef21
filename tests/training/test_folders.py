"""The folder of a run: held by one, resumed from or started afresh, and nothing lost by it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adalora.errors import UserError
from adalora.storage.atomic import LOCK_FILE
from adalora.storage.snapshots import MANIFEST, publish, staging_folder
from adalora.training.folders import clear_earlier_run, find_checkpoint, hold_folder

Make = Callable[..., Any]


@pytest.fixture
def arguments(make_arguments: Make) -> Any:
    made = make_arguments(do_train=True)
    with hold_folder(made):
        pass
    return made


def put_checkpoint(arguments: Any, step: int) -> Path:
    target = Path(arguments.output_dir) / f"checkpoint-{step}"
    staging_folder(target).mkdir()
    (staging_folder(target) / "trainer_state.json").write_text("{}")
    publish(target, step=step, settings={})
    return target


def test_an_empty_folder_starts_afresh(arguments: Any) -> None:
    assert find_checkpoint(arguments) is None


def test_a_run_killed_in_its_first_checkpoint_starts_afresh(arguments: Any) -> None:
    staging_folder(Path(arguments.output_dir) / "checkpoint-2").mkdir()
    assert find_checkpoint(arguments) is None


def test_files_without_a_checkpoint_are_not_overwritten_unasked(arguments: Any) -> None:
    precious = Path(arguments.output_dir) / "adapter.safetensors"
    precious.write_text("mine")
    with pytest.raises(UserError, match="--overwrite_output_dir to replace"):
        find_checkpoint(arguments)
    arguments.overwrite_output_dir = True
    assert find_checkpoint(arguments) is None
    assert precious.read_text() == "mine"


def test_the_last_checkpoint_is_resumed_from_or_cleared_when_asked(arguments: Any) -> None:
    put_checkpoint(arguments, 9)
    checkpoint = put_checkpoint(arguments, 10)
    notes = Path(str(arguments.root_output_dir)) / "notes.txt"
    notes.write_text("mine")
    assert find_checkpoint(arguments) == str(checkpoint)
    clear_earlier_run(arguments)
    assert checkpoint.is_dir()
    arguments.overwrite_output_dir = True
    assert find_checkpoint(arguments) is None
    clear_earlier_run(arguments)
    assert not checkpoint.exists()
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("wanted", ["True", "path"])
def test_resuming_is_stronger_than_overwriting_and_clears_nothing(
    arguments: Any, wanted: str
) -> None:
    """The seed scripts overwrite; a user who adds --resume_from_checkpoint wants to go on."""
    checkpoint = put_checkpoint(arguments, 4)
    arguments.overwrite_output_dir = True
    arguments.resume_from_checkpoint = str(checkpoint) if wanted == "path" else wanted
    assert find_checkpoint(arguments) == str(checkpoint)
    clear_earlier_run(arguments, resumes=True)
    assert checkpoint.is_dir()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("True", "holds no checkpoint"), ("nowhere", "'nowhere' is not a checkpoint")],
)
def test_a_checkpoint_that_is_not_there_is_named(arguments: Any, wanted: str, message: str) -> None:
    arguments.resume_from_checkpoint = wanted
    with pytest.raises(UserError, match=message):
        find_checkpoint(arguments)


def test_a_damaged_checkpoint_is_passed_over_but_refused_when_asked_for(
    arguments: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sound, damaged = put_checkpoint(arguments, 2), put_checkpoint(arguments, 4)
    (damaged / "trainer_state.json").write_text("{")
    assert find_checkpoint(arguments) == str(sound)
    assert "checkpoint-4 is damaged: trainer_state.json has 1 bytes instead of 2" in caplog.text
    arguments.resume_from_checkpoint = str(damaged)
    with pytest.raises(UserError, match="checkpoint-4 is damaged"):
        find_checkpoint(arguments)


def test_with_every_checkpoint_damaged_the_run_says_so(arguments: Any) -> None:
    (put_checkpoint(arguments, 2) / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"No checkpoint in .* checkpoint-2 is damaged"):
        find_checkpoint(arguments)
    arguments.overwrite_output_dir = True
    assert find_checkpoint(arguments) is None


# --- one writer at a time -------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused_in_one_sentence(arguments: Any) -> None:
    with (
        hold_folder(arguments),
        pytest.raises(UserError, match=r"is in use by process \d+ on .*"),
        hold_folder(arguments),
    ):
        pass
    with hold_folder(arguments):
        pass


def test_a_killed_run_leaves_no_lock_behind(arguments: Any) -> None:
    root = Path(arguments.root_output_dir)
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from adalora.storage.atomic import locked_folder\n"
        "with locked_folder(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {holder.pid}"),
            hold_folder(arguments),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
    assert (root / LOCK_FILE).is_file()
    with hold_folder(arguments):
        pass


# --- places that cannot be written to -------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_named(make_arguments: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = make_arguments(root_output_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be written to"), hold_folder(arguments):
        pass


def test_a_read_only_file_system_is_named(make_arguments: Make, read_only: Path) -> None:
    arguments = make_arguments(root_output_dir=str(read_only))
    with pytest.raises(UserError, match="cannot be written to"), hold_folder(arguments):
        pass
    arguments = make_arguments(root_output_dir=str(read_only / "new"))
    with pytest.raises(UserError, match="cannot be written to"), hold_folder(arguments):
        pass

"""The lock of a folder: one holder, who is named; a file system without locks is reported."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from adalora.errors import UserError
from adalora.storage import atomic
from adalora.storage.atomic import LOCK_FILE, locked_folder


def test_the_holder_is_named_and_keeps_other_users_of_filelock_out(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        with (
            pytest.raises(UserError, match=f"--output .* is in use by process {os.getpid()} on "),
            locked_folder(tmp_path, flag="--output"),
        ):
            pass
        with pytest.raises(Timeout):
            FileLock(tmp_path / LOCK_FILE, timeout=0).acquire()
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    with locked_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> bool:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic, "lock_descriptor", refuse)
    number = errno.ENOLCK
    with locked_folder(tmp_path):
        pass
    assert "cannot be locked (" in caplog.text
    assert "start no second run there" in caplog.text
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output error"), locked_folder(tmp_path):
        pass

"""Atomic writes: files that are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest
from vtnpipe.manifests.atomic import atomic_path, atomic_text, remove_temporaries
from vtnpipe.manifests.errors import StorageError


def test_an_exception_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_text(path) as file:
            file.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_error_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"x\.txt .*No space left on device"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_temporaries_of_killed_writers_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".000-00000.h5.123-abcdef01.tmp"
    stale.touch()
    (tmp_path / "000-00000.h5").touch()
    assert remove_temporaries(tmp_path) == [stale]
    assert [path.name for path in tmp_path.iterdir()] == ["000-00000.h5"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_only_the_files_own_fsync_must_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Some file systems cannot flush a folder; a disk that fails still shows."""
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(number, os.strerror(number))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "x.txt"
    if number == errno.EIO:
        with pytest.raises(StorageError), atomic_text(path) as file:
            file.write("new")
        return
    with atomic_text(path) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]

"""Locks: one writer at a time, and none that outlives its process; with flock and without."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vtnpipe.manifests import lock
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_folder import FeatureFolder, is_new_folder
from vtnpipe.manifests.lock import has_flock, locked, planning_lock


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def with_flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:

        def flock(descriptor: object, operation: int) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", flock)
    return bool(request.param)


def _hold(root: Path, ready: Any, release: Any) -> None:
    with locked(FeatureFolder(root)):
        ready.set()
        release.wait(30)


@pytest.mark.usefixtures("with_flock")
def test_a_second_run_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(30)
    with pytest.raises(FeaturesError, match="another run"), locked(FeatureFolder(tmp_path)):
        pass
    process.kill()
    process.join()
    with locked(FeatureFolder(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_whether_there_is_flock(tmp_path: Path, with_flock: bool) -> None:
    assert has_flock(tmp_path) is with_flock
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("with_flock")
def test_parts_share_a_lock_that_excludes_others(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path)
    with locked(folder, is_shared=True):
        assert is_new_folder(folder)
        with (
            locked(folder, is_shared=True),
            pytest.raises(FeaturesError, match=f"process {os.getpid()} on"),
            locked(folder),
        ):
            pass
    with (
        locked(folder),
        pytest.raises(FeaturesError, match="another run"),
        locked(folder, is_shared=True),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("with_flock")
def test_planning_waits(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path)
    inside: list[int] = []

    def plan(number: int) -> None:
        with planning_lock(folder):
            inside.append(number)
            assert len(inside) == 1
            time.sleep(0.05)
            inside.remove(number)

    threads = [threading.Thread(target=plan, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert inside == []
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A claim of a process on another host."""

    def flock(descriptor: object, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / ".lock.alone-01234567"
    path.write_text("process 12 on elsewhere\nanother-boot pid:[1]")
    yield path
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def test_a_claim_of_another_host_ends_when_it_is_not_touched(tmp_path: Path, claim: Path) -> None:
    with (
        pytest.raises(FeaturesError, match="process 12 on elsewhere"),
        locked(FeatureFolder(tmp_path)),
    ):
        pass
    old = time.time() - 2 * lock.STALE_SECONDS
    os.utime(claim, (old, old))
    with locked(FeatureFolder(tmp_path)):
        assert not claim.exists()


def test_a_holder_touches_its_claim(
    tmp_path: Path, claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim.unlink()
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    with locked(FeatureFolder(tmp_path)):
        (mine,) = tmp_path.glob(".lock.alone-*")
        os.utime(mine, (0, 0))
        deadline = time.monotonic() + 30
        while mine.stat().st_mtime < 1000:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_guard_of_a_killed_process_is_removed(
    tmp_path: Path, claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim.unlink()
    (tmp_path / ".lock.guard").touch()
    monkeypatch.setattr(lock, "GUARD_STALE_SECONDS", 0.2)
    with locked(FeatureFolder(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_guard_that_could_not_be_removed_is_no_claim(
    tmp_path: Path, claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim.unlink()
    unlink = Path.unlink

    def keep_guards(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", keep_guards)
        with locked(FeatureFolder(tmp_path)):
            pass
    assert list(tmp_path.glob("*.tmp"))
    with locked(FeatureFolder(tmp_path)):
        assert list(tmp_path.glob(".lock.alone-*"))


def test_a_claim_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, claim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim.unlink()

    def write_text(self: Path, text: str) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(FeaturesError, match="No space left"), locked(FeatureFolder(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []

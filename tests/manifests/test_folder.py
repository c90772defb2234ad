"""The feature folder: fingerprint, identity, lock, and files that are there whole or not at all."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from vtnpipe.manifests.atomic import atomic_text, remove_temporaries
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_folder import (
    FeatureFolder,
    check_identity,
    fingerprint,
    locked,
    read_extraction,
    write_extraction,
)


def test_fingerprint_follows_values_and_not_their_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_another_identity_is_refused_with_both_values(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path)
    write_extraction(folder, {"backbone": "a", "feature_dtype": "float16"}, row_shape=[3])
    check_identity(folder, {"backbone": "a", "feature_dtype": "float16"})
    with pytest.raises(FeaturesError, match="backbone is 'b' here and 'a' in the folder"):
        check_identity(folder, {"backbone": "b", "feature_dtype": "float16"})


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": "vtnpipe.extraction", "version": 2}'])
def test_a_damaged_extraction_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "extraction.json").write_text(text)
    with pytest.raises(FeaturesError, match=r"extraction\.json"):
        read_extraction(FeatureFolder(tmp_path))


def _hold(root: Path, ready: Any, release: Any) -> None:
    with locked(FeatureFolder(root)):
        ready.set()
        release.wait(30)


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


def test_temporaries_of_killed_writers_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".000-00000.h5.123-abcdef01.tmp"
    stale.touch()
    (tmp_path / "000-00000.h5").touch()
    assert remove_temporaries(tmp_path) == [stale]
    assert [path.name for path in tmp_path.iterdir()] == ["000-00000.h5"]

"""The index of video files: what it keeps of each, and when it is of use again."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import write_video
from vtnpipe.extract.decode.index import VideoIndex, read_timelines, write_index
from vtnpipe.extract.decode.probe import probe
from vtnpipe.manifests.atomic import FileState, file_state
from vtnpipe.manifests.errors import FeaturesError


def _index(paths: list[str], where: Path) -> tuple[VideoIndex, dict[str, FileState]]:
    states = {path: file_state(path) for path in paths}
    write_index(where, states, read_timelines(paths, 2))
    return VideoIndex(where), states


def test_timelines_come_back_as_they_were(tmp_path: Path, clips: dict[str, Path]) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    names = [str(path) for path in clips.values()]
    odd = [str(tmp_path / "text.mp4"), str(tmp_path / "gone.mp4")]
    index, states = _index([*names, *odd], tmp_path / "index.safetensors")
    assert index.covers(states)
    for name in names:
        info = probe(name)
        for found in (index.timeline(name), pickle.loads(pickle.dumps(index)).timeline(name)):
            assert found.to_json() == info.to_json()
            np.testing.assert_array_equal(found.times, info.times)
        assert index.fault(name) is None
        assert index.num_presented(name) == info.num_presented
    faults = [index.fault(name) for name in odd]
    assert [fault and fault.reason for fault in faults] == ["not-a-video", "missing"]


def test_a_file_that_changed_is_not_covered(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "a.mp4", 9))
    index, states = _index([path], tmp_path / "index.safetensors")
    assert index.covers(states)
    assert not index.covers(states | {"b.mp4": FileState(None, None)})
    write_video(tmp_path / "a.mp4", 10)
    assert not index.covers({path: file_state(path)})
    assert not VideoIndex(tmp_path / "none.safetensors").covers(states)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(FeaturesError, match=r"cannot read .*index\.safetensors"):
        VideoIndex(tmp_path / "index.safetensors").covers({})


def test_an_empty_index(tmp_path: Path) -> None:
    index, _ = _index([], tmp_path / "index.safetensors")
    assert index.covers({})

"""Probes: what one pass over the packets tells of a file."""

import json
from pathlib import Path

import numpy as np
import pytest
from numbered_videos import CLIP_LENGTHS, write_video
from vtnpipe.extract.decode.frame_format import Orientation
from vtnpipe.extract.decode.probe import Timeline, probe
from vtnpipe.manifests.failures import VideoError


def test_orientation_of_all_eight() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    rotations = {
        Orientation(False, False, False): 0,
        Orientation(True, False, True): 1,
        Orientation(False, True, True): 2,
        Orientation(True, True, False): 3,
    }
    for orientation, turns in rotations.items():
        np.testing.assert_array_equal(orientation.apply(image), np.rot90(image, turns))
        assert not orientation.is_mirrored
    mirrored = [Orientation(False, True, False), Orientation(False, False, True)]
    mirrored += [Orientation(True, False, False), Orientation(True, True, True)]
    assert all(orientation.is_mirrored for orientation in mirrored)


def test_what_a_probe_tells(clips: dict[str, Path]) -> None:
    for name, path in clips.items():
        calls: list[None] = []
        info = probe(str(path), on_progress=lambda calls=calls: calls.append(None))
        length = CLIP_LENGTHS[name]
        assert info.num_presented == len(info.times) == length
        assert len(calls) >= length
        np.testing.assert_allclose(info.times, np.arange(length) / 25, atol=1e-3)
        assert bool(info.count_reason) == (name == "d")  # AVI
        assert bool(info.keyframes) == (name != "d")
        assert (info.width, info.height) == (128, 96 if name == "b" else 64)
        assert (info.num_beyond_end, info.oddities) == (0, ())


def test_a_timeline_survives_json(tmp_path: Path) -> None:
    info = probe(str(write_video(tmp_path / "a.mp4", 60)))
    values = json.loads(json.dumps(info.to_json()))
    found = Timeline.from_json(values)
    assert type(found) is Timeline
    assert found.keyframes == info.keyframes
    assert found.clean_keyframes == info.clean_keyframes
    assert found.time_base == info.time_base
    np.testing.assert_array_equal(found.times, info.times)
    assert json.loads(json.dumps(found.to_json())) == values


def test_frames_beyond_the_pixel_limit_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 3)
    assert probe(str(path), max_pixels=128 * 64).max_pixels == 128 * 64
    with pytest.raises(VideoError, match="128x64") as caught:
        probe(str(path), max_pixels=128 * 64 - 1)
    assert caught.value.reason == "too-large"

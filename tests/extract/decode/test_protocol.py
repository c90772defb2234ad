"""The protocol: requests survive JSON, and frames lie where they were put."""

import json
import os

import numpy as np
import pytest
from vtnpipe.extract.decode.protocol import (
    NUM_SLOTS,
    CutRequest,
    DecodeRequest,
    QuickProbeRequest,
    Request,
    SharedFrames,
    TimelineRequest,
    frames_per_chunk,
    from_message,
    to_message,
)
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.plan import Cut

CUT = Cut(0.5, None, 12, 20, 8, 0, 4, (4, 300, None), None)


@pytest.mark.parametrize(
    "request_",
    [
        DecodeRequest("/ü.mp4"),
        DecodeRequest("/a.mp4", 0.5, 1 / 3, Sampling(fps=5), CUT, "pyav", decoder_reason="why"),
        DecodeRequest("/a.mp4", frames=[3, 5]),
        DecodeRequest("/a.mp4", decoder="nvdec", as_planes=True),
        QuickProbeRequest("/a.mp4", with_orientation=True),
        CutRequest("/a.mp4", [0, 9], Sampling(frame_stride=2), end=3.0),
        TimelineRequest("/a.mp4"),
    ],
    ids=str,
)
def test_requests_survive_json(request_: Request) -> None:
    assert from_message(json.loads(json.dumps(to_message(request_)))) == request_


def test_both_sides_see_the_same_frames() -> None:
    ours = SharedFrames(64 * 64)
    theirs = SharedFrames(64 * 64, os.dup(ours.descriptor))
    for slot in range(NUM_SLOTS):
        theirs.data(slot, 2, 3 * 32 * 64)[:] = slot + 1
    for slot in range(NUM_SLOTS):
        data = ours.data(slot, 1, 3 * 64 * 64)
        assert data.shape == (1, 3 * 64 * 64)
        assert np.unique(data).tolist() == [slot + 1]


def test_a_chunk_fits_in_its_slot() -> None:
    for height, width in ((64, 128), (1080, 1920), (2160, 3840), (6000, 6000)):
        length = frames_per_chunk(3 * height * width, 40_000_000)
        assert 1 <= length <= 32
        assert length * 3 * height * width <= 3 * 40_000_000

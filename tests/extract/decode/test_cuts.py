"""Parts of a long video: together they are the whole, frame by frame and bit by bit."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_videos import damage_packet, draw_number, read_number, write_video
from read_videos import read_video as read
from vtnpipe.extract.decode import cuts as cuts_module
from vtnpipe.extract.decode import frames as frames_module
from vtnpipe.extract.decode.cuts import SETTLING_FRAMES, cut_clip, cut_video
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.plan import Cut

NUM_FRAMES = 120


def cuts_of(path: Path, part_frames: int, **options: Any) -> list[Cut]:
    info = probe(str(path))
    sampling = options.pop("sampling", Sampling())
    return cut_video(info, range(0, info.num_presented, part_frames), sampling, **options)


def assert_parts_are_the_whole(path: Path, cuts: list[Cut], **options: Any) -> None:
    whole, outcome = read(path, decoder="pyav", **options)
    parts = [read(path, cut=cut, **options) for cut in cuts]
    frames = [frame for part, _ in parts for frame in part]
    assert [f.frame_index for f in frames] == [f.frame_index for f in whole]
    assert [f.time for f in frames] == [f.time for f in whole]
    for one, other in zip(frames, whole, strict=True):
        np.testing.assert_array_equal(one.image, other.image, f"frame {one.frame_index}")
    assert sum(part[1].num_lost_frames for part in parts) == outcome.num_lost_frames
    for cut, (part, _) in zip(cuts, parts, strict=True):
        assert len(part) == cut.num_frames or outcome.num_lost_frames
        assert part[0].time == cut.start
        assert cut.end is None or part[-1].time < cut.end


def assert_clips_are_of_the_whole(path: Path) -> int:
    """A few frames of a file, read alone, are those of a reading of everything; how many pieces."""
    whole, _ = read(path, decoder="pyav")
    info = probe(str(path))
    generator = np.random.default_rng(0)
    num_pieces = 0
    drawn = [generator.choice(len(whole), count, replace=False) for count in (1, 2, 3, 8)]
    for wanted in (*(sorted(one.tolist()) for one in drawn), [2, len(whole) - 3]):
        pieces = cut_clip(info, wanted)
        found = [read(path, cut=cut, frames=piece) for cut, piece in pieces]
        frames = [frame for some, _ in found for frame in some]
        assert [frame.frame_index for frame in frames] == wanted
        assert all(outcome.status == "ok" for _, outcome in found)
        for frame in frames:
            assert frame.time == whole[frame.frame_index].time
            np.testing.assert_array_equal(frame.image, whole[frame.frame_index].image)
        num_pieces = max(num_pieces, len(pieces))
    return num_pieces


def write(path: Path, **changes: Any) -> Path:
    """A numbered video with libx264's own options, for what `write_video` has no word for."""
    options = {"g": "15", "keyint_min": "15", "sc_threshold": "0", "bf": "3", **changes}
    time_of = options.pop("time_of", lambda number: 40 * number)  # ms
    codec = options.pop("codec", "libx264")
    with av.open(str(path), "w", options=options.pop("container", {})) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(NUM_FRAMES):
            frame = av.VideoFrame.from_ndarray(draw_number(number, 64, 128), format="rgb24")
            frame.pts, frame.time_base = time_of(number), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_with_edit_list(folder: Path) -> Path:
    """Begins and ends in the middle of a group of pictures, as a player's `cut` command leaves it:
    the packets are copied, and an edit list hides those before the first frame.
    """
    source, path = write(folder / "source.mp4"), folder / "a.mp4"
    with av.open(str(source)) as whole, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.pts -= HIDDEN * packet.duration
                packet.dts -= HIDDEN * packet.duration
                packet.stream = stream
                container.mux(packet)
    return path


HIDDEN = 10
OPEN_GOP = {"x264-params": "open-gop=1:b-adapt=0"}
KINDS: dict[str, Callable[[Path], Path]] = {
    "B-frames": lambda folder: write(folder / "a.mp4"),
    "open GOPs": lambda folder: write(folder / "a.mp4", **OPEN_GOP),
    "open GOPs, Matroska": lambda folder: write(folder / "a.mkv", **OPEN_GOP),
    "intra refresh": lambda folder: write(folder / "a.mp4", **{"x264-params": "intra-refresh=1"}),
    "variable rate": lambda folder: write(
        folder / "a.mp4", time_of=lambda n: 33 * n + 11 * (n % 3) + 900 * (n > 50)
    ),
    "late start": lambda folder: write(folder / "a.mp4", time_of=lambda n: 1500 + 40 * n),
    "edit list": write_with_edit_list,
    "fragments": lambda folder: write(
        folder / "a.mp4", container={"movflags": "frag_keyframe+empty_moov"}
    ),
    "Matroska": lambda folder: write(folder / "a.mkv"),
    "VP9": lambda folder: write_video(folder / "a.webm", NUM_FRAMES, codec="libvpx-vp9"),
    "transport stream": lambda folder: write(folder / "a.ts"),
    "HEVC": lambda folder: write(folder / "a.mp4", codec="libx265"),
    "turned": lambda folder: write_video(folder / "a.mp4", NUM_FRAMES, rotation=90),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_whole(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path)
    cuts = cuts_of(path, 31)
    assert len(cuts) == 4
    assert_parts_are_the_whole(path, cuts)
    for cut in cuts[1:]:  # the parts are not read from the file's beginning
        assert cut.keyframe is not None
    assert all(cut.num_packets is not None and cut.num_packets < 70 for cut in cuts[:-1])
    if kind != "turned":
        first = HIDDEN if kind == "edit list" else 0
        numbers = [read_number(f.image) for cut in cuts for f in read(path, cut=cut)[0]]
        assert numbers == list(range(first, NUM_FRAMES))


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_of_the_whole(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = KINDS[kind](tmp_path)
    monkeypatch.setattr(cuts_module, "MIN_SKIPPED_FRAMES", NUM_FRAMES)
    assert assert_clips_are_of_the_whole(path) == 1
    monkeypatch.setattr(cuts_module, "MIN_SKIPPED_FRAMES", 2)
    assert (assert_clips_are_of_the_whole(path) > 1) == (kind != "transport stream")


def test_frames_that_are_counted_are_read_from_the_beginning(clips: dict[str, Path]) -> None:
    assert cut_clip(probe(str(clips["d"])), [3, 40]) == [(None, [3, 40])]
    assert assert_clips_are_of_the_whole(clips["d"]) == 1
    with pytest.raises(VideoError, match="changed since it was probed"):
        read(clips["d"], frames=[41])


LONG = {"g": "40", "keyint_min": "40"}


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("is_open", [False, True])
def test_decoding_begins_near_a_part_where_a_keyframe_needs_nothing(
    tmp_path: Path, codec: str, suffix: str, is_open: bool
) -> None:
    gop = "open-gop=1:b-adapt=0" if is_open else "open-gop=0"
    if codec == "libx265":
        gop += ":keyint=40:min-keyint=40:scenecut=0:log-level=none"
    params = {codec.removeprefix("lib") + "-params": gop}
    path = write(tmp_path / f"a{suffix}", codec=codec, **LONG, **params)
    cuts = cuts_of(path, 29)
    assert_parts_are_the_whole(path, cuts)
    most = max(cut.first_frame - cut.window_frame for cut in cuts)
    assert (most <= 40 + SETTLING_FRAMES) != is_open
    assert len(probe(str(path)).clean_keyframes) == (1 if is_open else 3)


@pytest.mark.parametrize("sampling", [Sampling(frame_stride=4), Sampling(fps=7)])
@pytest.mark.parametrize("span", [{}, {"start": 0.5}, {"start": 0.3, "end": 4.0}])
@pytest.mark.parametrize("kind", ["B-frames", "variable rate", "transport stream"])
def test_parts_of_some_frames_of_a_span(
    tmp_path: Path, kind: str, span: dict[str, float], sampling: Sampling
) -> None:
    path = KINDS[kind](tmp_path)
    cuts = cuts_of(path, 9, sampling=sampling, **span)
    assert len(cuts) > 1
    assert_parts_are_the_whole(path, cuts, sampling=sampling, **span)


def test_a_late_span_is_not_decoded_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp4")
    whole, _ = read(path, start=4.0, end=4.4)
    assert [read_number(frame.image) for frame in whole] == list(range(100, 110))
    decoded = []
    decode = frames_module.decode
    monkeypatch.setattr(
        frames_module, "decode", lambda *args: decoded.append(args) or decode(*args)
    )
    again, _ = read(path, start=4.0, end=4.4)
    assert [frame.frame_index for frame in again] == list(range(100, 110))
    assert len(decoded) < 50


def test_a_part_that_a_seek_misses_is_read_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp4")
    cuts = cuts_of(path, 31)
    monkeypatch.setattr("vtnpipe.extract.decode.packets._seek", lambda *args: None)
    assert_parts_are_the_whole(path, cuts)


def test_lost_frames_are_counted_by_the_part_that_has_them(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", NUM_FRAMES, num_b_frames=0)
    cuts = cuts_of(path, 30)
    damage_packet(path, NUM_FRAMES - 1)
    outcomes = [read(path, cut=cut)[1] for cut in cuts]
    assert [outcome.num_lost_frames for outcome in outcomes] == [0, 0, 0, 1]
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "ok", "partial"]


def test_what_can_not_be_cut_stays_whole(tmp_path: Path) -> None:
    avi = write_video(tmp_path / "a.avi", NUM_FRAMES, codec="mpeg4")
    raw = write_video(tmp_path / "a.264", NUM_FRAMES)
    assert cuts_of(avi, 31) == cuts_of(raw, 31) == []
    assert cuts_of(write(tmp_path / "a.mp4"), 100_000) == []


def test_few_keyframes_make_few_parts(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", NUM_FRAMES, gop=1000)
    cuts = cuts_of(path, 5)
    lengths = [cut.stop_frame - cut.first_frame for cut in cuts]
    for cut, before in zip(cuts[1:], lengths, strict=False):
        assert cut.first_frame - cut.window_frame <= 4 * before
    assert len(cuts) < 20
    assert_parts_are_the_whole(path, cuts)


def test_another_file_than_was_planned_is_named(tmp_path: Path) -> None:
    cut = cuts_of(write(tmp_path / "a.mp4"), 31)[2]
    for other in (
        write(tmp_path / "b.mp4", time_of=lambda n: 41 * n),
        write_video(tmp_path / "c.mp4", 20),
    ):
        with pytest.raises(VideoError, match="changed since it was probed"):
            read(other, cut=cut)


@pytest.mark.slow
@pytest.mark.shared
def test_parts_of_real_clips_are_the_whole(shared_videos: Path) -> None:
    num_parts = 0
    for path in sorted(shared_videos.rglob("*")):
        if not path.is_file() or path.suffix in (".md", ".tsv"):
            continue
        try:
            _, outcome = read(path, decoder="pyav")
        except VideoError:
            continue
        if outcome.status != "ok":  # what a decoder makes up depends on where it began
            continue
        cuts = cuts_of(path, 40)
        num_parts += len(cuts)
        if cuts:
            assert_parts_are_the_whole(path, cuts)
    assert num_parts > 50

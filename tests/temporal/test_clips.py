"""Clips are chosen by time, and their positions do not depend on the frame rate."""

import numpy as np
import pytest
import torch
from vtnpipe.manifests.times import nearest
from vtnpipe.temporal.clips import (
    ALL_FRAMES,
    ClipSampling,
    clip_positions,
    draw_clip,
    draw_clips,
    draw_views,
    even_clip,
    even_clips,
    frame_positions,
)
from vtnpipe.temporal.time_table import Ragged, TimeTable


def test_the_frames_of_a_clip_are_evenly_spaced_in_time() -> None:
    sampling = ClipSampling()
    for fps in (10.0, 19.62, 30.0):
        times = np.arange(600) / fps
        starts = []
        for seed in range(50):
            chosen = draw_clip(times, sampling, seed)
            assert len(chosen) == 16
            steps = np.diff(times[chosen])
            np.testing.assert_allclose(steps, 0.32, atol=1 / fps + 1e-9)
            starts.append(times[chosen[0]])
        assert np.ptp(starts) > 0.7 * (times[-1] - 5.12)


def test_a_clip_of_a_short_or_irregular_video_takes_no_frame_twice() -> None:
    sampling = ClipSampling()
    assert draw_clip(np.array([0.0]), sampling, 0).tolist() == [0]
    assert draw_clip(np.array([0.0, 0.04]), sampling, 0).tolist() == [0, 1]
    few = np.arange(9) / 10  # less than a second, for a clip of 16 frames: all of them, once
    assert draw_clip(few, sampling, 0).tolist() == list(range(9))
    gap = np.array([0.0, 0.1, 0.2, 60.0, 60.1])  # no frame is near most of a clip's times
    nearest = {tuple(draw_clip(gap, sampling, n)) for n in range(40)}
    assert nearest <= {(0, 1, 2), (1, 2), (2,), (2, 3), (3,), (3, 4), (4,)}
    assert (2,) in nearest
    assert (3,) in nearest


def test_jitter_moves_frames_and_drop_leaves_some_out() -> None:
    times = np.arange(1000) / 100
    moved = ClipSampling(num_frames=10, seconds=1.0, jitter=1.0)
    gaps = np.concatenate([np.diff(draw_clip(times, moved, n)) for n in range(50)])
    assert np.min(gaps) < 4
    assert np.max(gaps) > 16
    assert np.mean(gaps) == pytest.approx(10, abs=0.5)
    dropping = ClipSampling(num_frames=10, seconds=1.0, drop=0.3)
    counts = [len(draw_clip(times, dropping, n)) for n in range(400)]
    assert np.mean(counts) == pytest.approx(7, abs=0.3)
    kept = [draw_clip(times, ClipSampling(drop=1.0), n) for n in range(20)]
    assert {len(frames) for frames in kept} == {1}
    whole = draw_clip(times, ALL_FRAMES, 0)
    assert whole.tolist() == list(range(1000))


def test_evaluation_clips_reach_from_the_first_frame_to_the_last() -> None:
    times = np.arange(101) / 10
    sampling = ClipSampling(num_frames=4, seconds=1.0)
    clips = [even_clip(times, sampling, number, 3) for number in range(3)]
    np.testing.assert_allclose([times[frames].mean() for frames in clips], [0.5, 5, 9.5], atol=0.1)
    for frames in clips:
        np.testing.assert_allclose(np.diff(times[frames]), 0.25, atol=0.1)
    assert even_clip(times, ALL_FRAMES, 1, 3).tolist() == list(range(101))
    assert even_clip(times[:3], sampling, 0, 1).tolist() == [0, 1, 2]


def test_positions_agree_for_different_frame_rates() -> None:
    for fps in (5.0, 12.5, 25.0, 50.0):
        times = 3.0 + np.arange(20) / fps
        positions = frame_positions(times, np.arange(20), position_fps=25)
        assert positions[0] == 0
        np.testing.assert_allclose(positions / 25, times - 3.0, atol=0.5 / 25)


def test_positions_of_a_clip_count_from_its_rows_first_frame() -> None:
    times, index = np.arange(100) / 30, np.arange(100) + 7
    for fps in (25.0, None):
        whole = frame_positions(times, index, position_fps=fps)
        chosen = np.array([40, 50, 99])
        clip = frame_positions(
            times[chosen], index[chosen], position_fps=fps, first=(times[0], int(index[0]))
        )
        np.testing.assert_array_equal(clip, whole[chosen])


@pytest.mark.parametrize(("num_frames", "fps"), [(400, 30.0), (200, 25.0), (60, 19.62)])
def test_linspace_takes_the_frames_of_the_authors_decoder(num_frames: int, fps: float) -> None:
    """As `get_start_end_idx` and `temporal_sampling` in slowfast/datasets/decoder.py do."""
    times = np.arange(num_frames) / fps
    sampling = ClipSampling(num_frames=250, seconds=10.0, spacing="linspace")
    last = min(float(num_frames), 10.0 * fps - 1)
    expected = torch.linspace(0, last, 250).clamp(0, num_frames - 1).long()
    found = even_clip(times, sampling, 0, 1)
    assert np.abs(found - expected.numpy()).max() <= 1  # float32 against float64
    assert (found == expected.numpy()).mean() > 0.95

    clip = ClipSampling(num_frames=16, seconds=5.12, spacing="linspace")
    steps = torch.linspace(0, 5.12 * fps - 1, 16).long().numpy()
    starts = set()
    for seed in range(20):
        drawn = draw_clip(times, clip, seed)
        starts.add(int(drawn[0]))
        assert np.abs(np.minimum(drawn[0] + steps, num_frames - 1) - drawn).max() <= 1
    assert (len(starts) > 1) == (num_frames > 5.12 * fps)


def _table() -> TimeTable:
    """Videos of 1 to 400 frames, regular or not."""
    generator = np.random.default_rng(0)
    videos = {}
    for number in range(60):
        steps = generator.random(int(generator.integers(1, 400))) + 0.01
        regular = np.full(len(steps), 0.04)
        timestamps = np.cumsum(steps if number % 2 else regular) + number
        videos[f"v{number}"] = (np.arange(len(steps)) + 3, timestamps)
    return TimeTable.of(list(videos), videos.__getitem__, with_frame_index=True)


SAMPLINGS = [
    ClipSampling(),
    ClipSampling(num_frames=5, seconds=1.5, jitter=1.0, drop=0.3),
    ClipSampling(num_frames=7, spacing="linspace"),
    ALL_FRAMES,
    ClipSampling(num_frames=None, drop=0.5),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_clip_does_not_depend_on_the_others_of_its_batch(sampling: ClipSampling) -> None:
    table = _table()
    videos = np.arange(60)
    draws = np.full(60, 4)
    clips = draw_clips(table, videos, draws, sampling, 7)
    assert (clips.counts >= 1).all()
    views = draw_views(table, videos, draws, 3, 7)
    positions = clip_positions(table, videos, clips, 25.0)
    for number in reversed(range(60)):
        one, draw = np.array([number]), np.array([4])
        frames = draw_clips(table, one, draw, sampling, 7).values
        expected = clips.values[clips.offsets[number] : clips.offsets[number + 1]]
        np.testing.assert_array_equal(frames, expected)
        assert draw_views(table, one, draw, 3, 7)[0] == views[number]
        start, length = table.starts[number], table.lengths[number]
        times = table.timestamps[start : start + length]
        assert frames.min() >= 0
        assert frames.max() < length
        chosen = frame_positions(
            times[frames], frames, position_fps=25.0, first=(float(times[0]), 0)
        )
        found = positions.values[clips.offsets[number] : clips.offsets[number + 1]]
        np.testing.assert_array_equal(found, chosen)


def test_clips_take_the_nearest_frames() -> None:
    """As `nearest` does for one video after the other."""
    table = _table()
    videos, sampling = np.arange(60), ClipSampling(num_frames=9, seconds=2.0)
    clips = even_clips(table, videos, np.zeros(60, np.int64), sampling, 1)
    for number in videos:
        times = table.timestamps[table.starts[number] :][: table.lengths[number]]
        span = min(2.0, float(times[-1] - times[0]))
        start = float(times[0]) + 0.5 * (float(times[-1] - times[0]) - span)
        expected = nearest(times, start + (np.arange(9) + 0.5 + 0.0) * span / 9)
        found = clips.values[clips.offsets[number] : clips.offsets[number + 1]]
        np.testing.assert_array_equal(found, expected)


def test_random_numbers_are_uniform_and_independent() -> None:
    """Starts of clips over many videos, epochs and seeds; views, likewise."""
    table = TimeTable.of(
        [f"v{n}" for n in range(2000)], lambda _: (np.arange(1001), np.arange(1001) / 10)
    )
    videos, sampling = np.arange(2000), ClipSampling(num_frames=1, seconds=0.0)
    starts = [
        draw_clips(table, videos, np.full(2000, draw), sampling, seed).values / 1000
        for draw, seed in ((0, 0), (1, 0), (0, 1))
    ]
    for one in starts:
        counts, _ = np.histogram(one, bins=10, range=(0, 1))
        assert abs(counts - 200).max() < 60
    correlations = np.corrcoef(starts)
    assert abs(correlations[np.triu_indices(3, 1)]).max() < 0.08
    views = draw_views(table, videos, np.zeros(2000, np.int64), 4, 0)
    assert abs(np.bincount(views, minlength=4) - 500).max() < 90


def test_clips_are_padded_to_the_longest() -> None:
    rows = Ragged.of(np.arange(9), np.array([3, 5, 1]))
    assert rows.offsets.tolist() == [0, 3, 8, 9]
    assert rows.mask.tolist() == [[True] * n + [False] * (5 - n) for n in (3, 5, 1)]

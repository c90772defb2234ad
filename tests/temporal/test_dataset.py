"""Clips: drawn by time, by (seed, epoch, video) alone, and refused where features or labels are
bad.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from vtnpipe.manifests.errors import FeaturesError, ManifestError
from vtnpipe.manifests.shards import VideoPart
from vtnpipe.manifests.store import FeatureStore
from vtnpipe.manifests.videos import VideoRow
from vtnpipe.temporal.dataset import ClipDataset, ClipSampling, draw_clip
from vtnpipe.temporal.splits import rows_of_split
from vtnpipe.temporal.tasks import read_targets

MakeStore = Callable[..., FeatureStore]


def test_clips_span_their_seconds_evenly() -> None:
    sampling = ClipSampling()
    for fps in (10.0, 19.62, 30.0):
        times = np.arange(600) / fps
        starts = []
        for seed in range(50):
            chosen = draw_clip(times, sampling, np.random.default_rng(seed))
            assert len(chosen) == 16
            steps = np.diff(times[chosen])
            np.testing.assert_allclose(steps, 0.32, atol=1 / fps + 1e-9)
            starts.append(times[chosen[0]])
        assert np.ptp(starts) > 0.7 * (times[-1] - 5.12)


def test_short_and_irregular_videos() -> None:
    generator = np.random.default_rng(0)
    sampling = ClipSampling()
    assert draw_clip(np.array([0.0]), sampling, generator).tolist() == [0]
    assert draw_clip(np.array([0.0, 0.04]), sampling, generator).tolist() == [0, 1]
    few = np.arange(9) / 10  # less than a second, for a clip of 16 frames: all of them, once
    assert draw_clip(few, sampling, generator).tolist() == list(range(9))
    gap = np.array([0.0, 0.1, 0.2, 60.0, 60.1])  # most of a clip's times lie where no frame is
    nearest = {tuple(draw_clip(gap, sampling, np.random.default_rng(n))) for n in range(40)}
    assert nearest <= {(0, 1, 2), (1, 2), (2,), (2, 3), (3,), (3, 4), (4,)}
    assert (2,) in nearest
    assert (3,) in nearest


def test_a_sample_depends_on_seed_epoch_and_video_alone(
    make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()

    def clips(chosen: list[VideoRow], epoch: int, seed: int = 0) -> dict[str, torch.Tensor]:
        dataset = ClipDataset(
            store,
            chosen,
            torch.zeros(len(chosen)),
            position_fps=25,
            sampling=ClipSampling(num_frames=4, seconds=1.0, seed=seed),
        )
        dataset.epoch = epoch
        return {dataset[n].video_id: dataset[n].features for n in range(len(dataset))}

    first, turned = clips(rows, 0), clips(rows[::-1], 0)
    assert all(torch.equal(first[name], turned[name]) for name in first)
    for other in (clips(rows, 1), clips(rows, 0, seed=1)):
        assert sum(not torch.equal(first[name], other[name]) for name in first) > 12


def test_every_frame_without_sampling(make_store: MakeStore, rows: list[VideoRow]) -> None:
    store = make_store()
    dataset = ClipDataset(store, rows, torch.zeros(24), position_fps=25)
    sample = dataset[3]
    np.testing.assert_array_equal(sample.features.numpy(), store["v03"].features)
    assert sample.positions.tolist() == np.rint(np.arange(23) * 2.5).astype(int).tolist()


def test_shuffled_frames_keep_the_positions(make_store: MakeStore, rows: list[VideoRow]) -> None:
    store, targets = make_store(), torch.zeros(24)
    plain = ClipDataset(store, rows, targets, position_fps=25)
    first, again, other = (
        ClipDataset(store, rows, targets, position_fps=25, shuffle_seed=seed) for seed in (1, 1, 2)
    )
    for number in (0, 7):
        features = first[number].features
        assert torch.equal(first[number].positions, plain[number].positions)
        assert not torch.equal(features, plain[number].features)
        ordered = [sorted(map(tuple, f.tolist())) for f in (features, plain[number].features)]
        assert ordered[0] == ordered[1]
        assert torch.equal(features, again[number].features)
        assert not torch.equal(features, other[number].features)


def test_a_feature_that_is_not_finite_is_an_error(make_store: MakeStore) -> None:
    features = np.zeros((3, 12), dtype=np.float32)
    features[1, 5] = np.nan
    bad = VideoPart(
        video_id="bad",
        features=features,
        frame_index=np.arange(3),
        timestamps=np.arange(3.0),
        status="ok",
    )
    store = make_store(2, bad)
    row = VideoRow(video_id="bad", path="-")
    with pytest.raises(FeaturesError, match="'bad': a stored feature is not finite"):
        ClipDataset(store, [row], torch.zeros(1), position_fps=25)[0]


def test_labels_and_splits() -> None:
    rows = [
        VideoRow(video_id="x", path="-", label="run", split="train"),
        VideoRow(video_id="y", path="-", label="fly", split="val"),
    ]
    assert read_targets(rows, ["fly", "run"]).tolist() == [1, 0]
    with pytest.raises(ManifestError, match="'y': label 'fly' is none of the model's 1 classes"):
        read_targets(rows, ["run"])
    assert rows_of_split(rows, "val") == rows[1:]
    with pytest.raises(ManifestError, match="split 'test' has no rows; the manifest has 'train'"):
        rows_of_split(rows, "test")

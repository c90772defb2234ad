"""Clips: drawn by time, by (seed, epoch, video) alone, of all views, and refused where features or
labels are bad.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from vtnpipe.manifests.errors import FeaturesError, ManifestError, SettingsError
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.shards import VideoPart
from vtnpipe.temporal.clips import WHOLE, ClipSampling, draw_clip
from vtnpipe.temporal.dataset import ClipDataset, EvenClips, RandomClips
from vtnpipe.temporal.feature_reader import (
    FeatureReader,
    available_bytes,
    choose_place,
    num_table_bytes,
    preload,
)
from vtnpipe.temporal.order import evaluation_batches, training_batches
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


def test_jitter_and_drop() -> None:
    times = np.arange(1000) / 100
    moved = ClipSampling(num_frames=10, seconds=1.0, jitter=1.0)
    gaps = [np.diff(draw_clip(times, moved, np.random.default_rng(n))) for n in range(50)]
    assert np.min(gaps) < 4
    assert np.max(gaps) > 16
    assert np.mean(gaps) == pytest.approx(10, abs=0.5)
    dropping = ClipSampling(num_frames=10, seconds=1.0, drop=0.3)
    counts = [len(draw_clip(times, dropping, np.random.default_rng(n))) for n in range(400)]
    assert np.mean(counts) == pytest.approx(7, abs=0.3)
    for n in range(20):  # one always stays, and not always the first
        assert len(draw_clip(times, ClipSampling(drop=1.0), np.random.default_rng(n))) == 1
    whole = draw_clip(times, WHOLE, np.random.default_rng(0))
    assert whole.tolist() == list(range(1000))


def _dataset(
    store: FeatureStore,
    rows: list[VideoRow],
    clips: RandomClips | EvenClips,
    reader: FeatureReader | None = None,
) -> ClipDataset:
    targets = torch.arange(len(rows))
    return ClipDataset(
        reader or FeatureReader(store),
        [row.video_id for row in rows],
        targets,
        clips,
        position_fps=25,
    )


def test_a_sample_depends_on_seed_epoch_and_video_alone(
    make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()

    def clips(chosen: list[VideoRow], epoch: int, seed: int = 0) -> dict[str, torch.Tensor]:
        random = RandomClips(ClipSampling(num_frames=4, seconds=1.0, jitter=0.5), seed)
        dataset = _dataset(store, chosen, random)
        batch = dataset.batch([(number, epoch) for number in range(len(chosen))])
        return {row.video_id: one for row, one in zip(chosen, batch.inputs, strict=True)}

    first, turned = clips(rows, 0), clips(rows[::-1], 0)
    assert all(torch.equal(first[name], turned[name]) for name in first)
    for other in (clips(rows, 1), clips(rows, 0, seed=1)):
        assert sum(not torch.equal(first[name], other[name]) for name in first) > 12


def test_every_frame_by_default_of_an_evaluation(
    make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    dataset = _dataset(store, rows, EvenClips())
    batch = dataset.batch([(3, 0), (0, 0)])
    np.testing.assert_array_equal(batch.inputs[0].numpy(), store["v03"].features)
    assert not batch.inputs[1, 20:].any()
    assert batch.mask.sum(1).tolist() == [23, 20]
    assert batch.positions[0].tolist() == np.rint(np.arange(23) * 2.5).astype(int).tolist()
    assert batch.targets.tolist() == batch.numbers.tolist() == [3, 0]


def test_shuffled_frames_keep_the_positions(make_store: MakeStore, rows: list[VideoRow]) -> None:
    store = make_store()
    plain = _dataset(store, rows, EvenClips())
    first, again, other = (
        _dataset(store, rows, EvenClips(shuffle_seed=seed)) for seed in (1, 1, 2)
    )
    for number in (0, 7):
        batches = [dataset.batch([(number, 0)]) for dataset in (plain, first, again, other)]
        features = [batch.inputs[0] for batch in batches]
        assert torch.equal(batches[1].positions, batches[0].positions)
        assert not torch.equal(features[1], features[0])
        ordered = [sorted(map(tuple, one.tolist())) for one in features[:2]]
        assert ordered[0] == ordered[1]
        assert torch.equal(features[1], features[2])
        assert not torch.equal(features[1], features[3])


def test_views_are_drawn_in_training_and_all_used_in_evaluation(make_store: MakeStore) -> None:
    store = make_store(num_videos=6, num_views=3)
    rows = [VideoRow(video_id=f"v{n:02}", path="-") for n in range(6)]
    random = _dataset(store, rows, RandomClips(WHOLE))
    seen = set()
    for epoch in range(20):
        sample = random.sample((2, epoch))
        seen.add(sample.view)
        batch = random.batch([(2, epoch)])
        expected = store["v02"].features[:, sample.view]
        np.testing.assert_array_equal(batch.inputs[0].numpy(), expected)
    assert seen == {0, 1, 2}
    even = _dataset(store, rows, EvenClips(ClipSampling(num_frames=4, seconds=1.0), 2))
    assert even.num_draws == 6
    samples = [even.sample((2, draw)) for draw in range(6)]
    assert [sample.view for sample in samples] == [0, 1, 2] * 2
    assert len({tuple(sample.frames) for sample in samples}) == 2
    loaded = preload(store, [row.video_id for row in rows], "cpu")
    keys = [(n, draw) for n in (5, 0, 2) for draw in range(6)]
    copied = _dataset(store, rows, even._clips, loaded)
    torch.testing.assert_close(even.batch(keys), copied.batch(keys), rtol=0, atol=0)


@pytest.mark.parametrize("clips", [RandomClips(), RandomClips(WHOLE), EvenClips()])
def test_a_preloaded_batch_is_the_same(
    make_store: MakeStore, rows: list[VideoRow], clips: RandomClips | EvenClips
) -> None:
    store = make_store()
    ids = [row.video_id for row in rows]
    loaded = preload(store, [*ids, *ids], "cpu")
    assert loaded.table is not None
    assert loaded.table.nbytes == num_table_bytes(store, [*ids, *ids])
    keys = [(number, 0) for number in (7, 0, 23)]
    batches = [_dataset(store, rows, clips, reader).batch(keys) for reader in (None, loaded)]
    torch.testing.assert_close(*batches, rtol=0, atol=0)


def test_where_features_are_copied_to() -> None:
    free = available_bytes("cpu")
    assert choose_place("auto", 1000, "cpu")[0] == "cpu"
    place, why = choose_place("auto", free, "cpu")
    assert place is None
    assert "read from the shards: too many to copy" in why
    assert choose_place("auto", free // 3, "cpu", num_processes=2)[0] is None
    assert choose_place("none", 1000, "cpu")[0] is None
    with pytest.raises(SettingsError, match=r"--preload ram: .* too many"):
        choose_place("ram", free, "cpu")
    with pytest.raises(SettingsError, match="--preload gpu with a model on the CPU"):
        choose_place("gpu", 1000, "cpu")


def test_training_batches_hold_every_clip_once_and_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(10, 1000, 1003)
    first, again, other = (
        training_batches(lengths, 16, seed=0, epoch=epoch) for epoch in (0, 0, 1)
    )
    assert first == again != other
    assert sorted(number for keys in first for number, _ in keys) == list(range(1003))
    assert {epoch for keys in other for _, epoch in keys} == {1}
    assert sorted(map(len, first)) == [11] + [16] * 62
    padding = [max(lengths[n] for n, _ in keys) * len(keys) for keys in first]
    assert sum(padding) < 1.1 * lengths.sum()  # 1.9 times it in random order
    starts = [keys[0][0] for keys in training_batches(np.full(64, 16), 16, seed=0, epoch=0)]
    assert starts != sorted(starts)


def test_evaluation_batches_are_bounded() -> None:
    batches = evaluation_batches(np.array([10, 200_000, 50_000, 60_000]), 2, 4)
    assert [key for keys in batches for key in keys] == [
        *((1, 0), (1, 1), (3, 0), (3, 1), (2, 0), (2, 1), (0, 0), (0, 1))
    ]
    assert [len(keys) for keys in batches] == [1, 1, 2, 2, 2]


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
    rows = [VideoRow(video_id="v00", path="-"), VideoRow(video_id="bad", path="-")]
    with pytest.raises(FeaturesError, match="'bad': a stored feature is not finite"):
        _dataset(store, rows, EvenClips()).batch([(0, 0), (1, 0)])
    with pytest.raises(FeaturesError, match="'bad': a stored feature is not finite"):
        preload(store, ["v00", "bad"], "cpu")


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


def test_memory_is_that_of_the_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtnpipe.temporal.feature_reader.CGROUPS", tmp_path)
    monkeypatch.setattr("vtnpipe.temporal.feature_reader.OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("4:memory:/x\n0::/job/step\n")
    for name, limit, used in (("job", "5000", "2000"), ("job/step", "max", "1000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
        (tmp_path / name / "memory.current").write_text(f"{used}\n")
    assert available_bytes("cpu") == 3000

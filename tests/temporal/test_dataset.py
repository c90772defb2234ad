"""A sample depends on seed, epoch and video alone; batches contain every sample once."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.shards import VideoPart
from vtnpipe.temporal.clips import ALL_FRAMES, ClipSampling
from vtnpipe.temporal.dataset import (
    ClipDataset,
    EvenClips,
    RandomClips,
    evaluation_batches,
    training_batches,
)
from vtnpipe.temporal.feature_reader import FeatureReader, num_table_bytes, preload

MakeStore = Callable[..., FeatureStore]


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


def test_an_evaluation_reads_every_frame_by_default(
    make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    dataset = _dataset(store, rows, EvenClips())
    batch = dataset.batch([(3, 0), (0, 0)])
    np.testing.assert_array_equal(batch.inputs[0].numpy(), store["v03"].features)
    assert not batch.inputs[1, 20:].any()
    assert batch.mask.sum(1).tolist() == [23, 20]
    assert batch.positions[0].tolist() == np.rint(np.arange(23) * 2.5).astype(int).tolist()
    assert batch.targets.tolist() == batch.rows.tolist() == [3, 0]


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


def test_a_training_draws_one_view_and_an_evaluation_uses_all(make_store: MakeStore) -> None:
    store = make_store(num_videos=6, num_views=3)
    rows = [VideoRow(video_id=f"v{n:02}", path="-") for n in range(6)]
    random = _dataset(store, rows, RandomClips(ALL_FRAMES))
    seen = set()
    for epoch in range(20):
        view = int(random.samples(np.array([2]), np.array([epoch]))[0].views[0])
        seen.add(view)
        batch = random.batch([(2, epoch)])
        expected = store["v02"].features[:, view]
        np.testing.assert_array_equal(batch.inputs[0].numpy(), expected)
    assert seen == {0, 1, 2}
    even = _dataset(store, rows, EvenClips(ClipSampling(num_frames=4, seconds=1.0), 2))
    assert even.num_draws.tolist() == [6] * 6
    samples, _ = even.samples(np.full(6, 2), np.arange(6))
    assert samples.views.tolist() == [0, 1, 2] * 2
    assert len({tuple(frames) for _, frames, _ in samples.each()}) == 2
    loaded = preload(store, [row.video_id for row in rows], "cpu")
    keys = [(n, draw) for n in (5, 0, 2) for draw in range(6)]
    copied = _dataset(store, rows, even._clips, loaded)
    torch.testing.assert_close(even.batch(keys), copied.batch(keys), rtol=0, atol=0)


@pytest.mark.parametrize("clips", [RandomClips(), RandomClips(ALL_FRAMES), EvenClips()])
def test_a_preloaded_batch_equals_one_read_from_shards(
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


def test_training_batches_contain_every_clip_once_and_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(10, 1000, 1003)
    first, again, other = (
        training_batches(lengths, 16, seed=0, epoch=epoch) for epoch in (0, 0, 1)
    )
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))
    assert sorted(np.concatenate(first)[:, 0]) == list(range(1003))
    assert {epoch for keys in other for _, epoch in keys.tolist()} == {1}
    assert sorted(map(len, first)) == [11] + [16] * 62
    padding = [max(lengths[n] for n, _ in keys) * len(keys) for keys in first]
    assert sum(padding) < 1.1 * lengths.sum()  # 1.9 times it in random order
    starts = [keys[0][0] for keys in training_batches(np.full(64, 16), 16, seed=0, epoch=0)]
    assert starts != sorted(starts)


def test_evaluation_batches_have_a_maximum_of_frames() -> None:
    batches = evaluation_batches(np.array([10, 200_000, 50_000, 60_000]), np.full(4, 2), 120_000)
    assert np.concatenate(batches).tolist() == [
        *([1, 0], [1, 1], [3, 0], [3, 1], [2, 0], [2, 1], [0, 0], [0, 1])
    ]
    assert [len(keys) for keys in batches] == [1, 1, 2, 2, 2]


def test_batches_of_a_block_equal_those_read_alone(
    make_store: MakeStore, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    loaded = preload(store, [row.video_id for row in rows], "cpu")
    keys = [[(3, 1), (0, 1), (9, 1)], [(7, 1)], [(2, 1), (5, 1)], [(11, 1)]]
    for clips in (RandomClips(), RandomClips(ALL_FRAMES)):
        dataset = _dataset(store, rows, clips, loaded)
        expected = [dataset.batch(one) for one in keys]
        for most in (1, 40, 10**6):
            monkeypatch.setattr("vtnpipe.temporal.dataset.BLOCK_FRAMES", most)
            found = list(dataset.batches([np.array(one) for one in keys]))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert list(dataset.batches([])) == []

"""Positions, padding and masks."""

import numpy as np
import torch
from vtnpipe.temporal.batch import Sample, collate, frame_positions


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


def _sample(length: int, label: int) -> Sample:
    return Sample(torch.randn(length, 4), torch.arange(length), torch.tensor(label), f"v{length}")


def test_collate_pads_to_the_longest() -> None:
    samples = [_sample(3, 0), _sample(5, 2), _sample(1, 1)]
    batch = collate(samples)
    assert batch.features.shape == (3, 5, 4)
    assert batch.mask.sum(1).tolist() == [3, 5, 1]
    assert batch.targets.tolist() == [0, 2, 1]
    assert batch.video_ids == ("v3", "v5", "v1")
    for row, sample in enumerate(samples):
        length = len(sample.features)
        assert torch.equal(batch.features[row, :length], sample.features)
        assert torch.equal(batch.positions[row, :length], sample.positions)
        assert not batch.features[row, length:].any()

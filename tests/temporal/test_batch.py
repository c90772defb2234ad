"""Positions, padding and masks."""

import numpy as np
from vtnpipe.temporal.batch import frame_positions, pad


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


def test_padding_goes_to_the_longest() -> None:
    positions, mask = pad([np.arange(3) + 4, np.arange(5), np.arange(1) + 9])
    assert positions.tolist() == [[4, 5, 6, 0, 0], [0, 1, 2, 3, 4], [9, 0, 0, 0, 0]]
    assert mask.tolist() == [[True] * n + [False] * (5 - n) for n in (3, 5, 1)]

"""Sampling: the frames that are wanted."""

import numpy as np
import pytest
from vtnpipe.extract.decode.sampling import Sampling, select

TIMES = np.arange(250) / 25


def test_a_rate_takes_the_nearest_frames_once() -> None:
    assert select(TIMES, Sampling(fps=5)).tolist() == list(range(0, 250, 5))
    for fps in (25, 30, 1000):
        assert select(TIMES, Sampling(fps=fps)).tolist() == list(range(250))
    chosen = select(TIMES, Sampling(fps=7))
    assert len(chosen) == 70
    np.testing.assert_allclose(TIMES[chosen], np.arange(70) / 7, atol=0.02 + 1e-9)


def test_a_variable_rate_is_sampled_by_time() -> None:
    times = np.concatenate([np.arange(100) / 100, 1 + np.arange(10) / 5, [30.0]])
    chosen = select(times, Sampling(fps=5))
    np.testing.assert_allclose(times[chosen], [*(np.arange(15) / 5), 30.0], atol=1e-9)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(fps=0.1), Sampling(frame_stride=1000)])
def test_a_span_has_at_least_its_first_frame(sampling: Sampling) -> None:
    assert select(TIMES, sampling, start=2.0, end=2.2)[0] == 50
    assert len(select(TIMES, sampling, start=2.01, end=2.03)) == 0


@pytest.mark.parametrize("sampling", [Sampling(frame_stride=3), Sampling(fps=4), Sampling(fps=9.7)])
def test_a_span_begins_anew(sampling: Sampling) -> None:
    part = select(TIMES, sampling, start=3.0, end=7.0)
    moved = select(TIMES[75:175] - 3.0, sampling)
    assert part.tolist() == (75 + moved).tolist()

"""Frame rates and nearest frames."""

import numpy as np
import pytest
from vtnpipe.manifests.times import frame_rate, nearest, seconds_edges


def test_frame_rate_is_that_of_what_is_stored() -> None:
    assert frame_rate(np.array([0.0, 0.1, 0.4])) == pytest.approx(5)
    assert np.isnan(frame_rate(np.array([1.0])))
    assert np.isnan(frame_rate(np.array([1.0, 1.0])))


def test_nearest_frames_are_those_of_a_plain_search() -> None:
    generator = np.random.default_rng(0)
    times = np.unique(generator.random(50).round(3))
    targets = generator.uniform(-0.2, 1.2, 200)
    plain = {int(np.abs(times - target).argmin()) for target in targets}
    assert nearest(times, targets).tolist() == sorted(plain)


def test_the_last_frame_lasts_as_long_as_the_others() -> None:
    assert seconds_edges(np.array([0.0, 0.5, 1.0, 3.0])).tolist() == [0, 0.5, 1, 3, 3.5]
    assert seconds_edges(np.array([2.0])).tolist() == [2, 3]

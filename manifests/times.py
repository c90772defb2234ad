"""Functions of frame timestamps: frame rate, nearest frames, edges."""

import numpy as np
import numpy.typing as npt


def frame_rate(timestamps: npt.NDArray[np.float64]) -> float:
    """Return (T - 1) / (last - first) for timestamps [T] in seconds; NaN if undefined.

    >>> float(frame_rate(np.array([0.0, 0.5, 1.0])))
    2.0
    """
    span = float(timestamps[-1] - timestamps[0]) if len(timestamps) > 1 else 0.0
    return (len(timestamps) - 1) / span if span > 0 else float("nan")


def nearest(
    timestamps: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the frames nearest to the targets, each once; of two equally near, the earlier.

    >>> nearest(np.array([0.0, 1.0, 2.0]), np.array([-3.0, 0.5, 1.6, 9.0])).tolist()
    [0, 2]

    Args:
        timestamps: [T] seconds, increasing, T >= 1.
        targets: [t] seconds.

    Returns:
        [<= t] increasing.
    """
    return np.unique(nearest_each(timestamps, targets))


def nearest_each(
    timestamps: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the frame nearest to each target; of two equally near, the earlier.

    >>> nearest_each(np.array([0.0, 1.0, 2.0]), np.array([-3.0, 0.5, 0.6, 9.0])).tolist()
    [0, 0, 1, 2]

    Args:
        timestamps: [T] seconds, increasing, T >= 1.
        targets: [t] seconds.

    Returns:
        [t].
    """
    after = np.searchsorted(timestamps, targets).clip(0, len(timestamps) - 1)
    before = (after - 1).clip(0)
    is_before = targets - timestamps[before] <= timestamps[after] - targets
    return np.where(is_before, before, after).astype(np.int64)


def seconds_edges(timestamps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the start of each frame and the end of the last one, [T + 1] seconds.

    >>> seconds_edges(np.array([0.0, 0.5, 1.0])).tolist()
    [0.0, 0.5, 1.0, 1.5]
    """
    steps = np.diff(timestamps)
    last = float(np.median(steps)) if len(steps) else 1.0
    return np.append(timestamps, timestamps[-1] + (last or 1.0))

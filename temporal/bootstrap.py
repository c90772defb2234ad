"""How sure a figure is: percentile intervals over videos drawn again with replacement (B. Efron,
The Annals of Statistics 7(1), 1979).
"""

import numpy as np
from torch import Tensor

from .config import TemporalConfig
from .figures import figures_over

CONFIDENCE = 0.95


def intervals(
    logits: Tensor, targets: Tensor, config: TemporalConfig, *, num_resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The interval in which 95% of the resamples' figures lie, by the figure's name; none for a
    figure that is undefined in all of them.

    Args:
        logits: [N, C], one row a video.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        config: of the model.
        num_resamples: of N videos each; 0 for no intervals.
        seed: of the draws.
    """
    figures = figures_over(logits, targets, config)
    generator = np.random.default_rng(seed)
    num_videos = len(logits)
    found: dict[str, list[float]] = {}
    for _ in range(num_resamples):
        for name, value in figures(generator.integers(num_videos, size=num_videos)).items():
            found.setdefault(name, []).append(value)
    ends = (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2)
    quantiles = {
        name: np.nanpercentile(values, ends)
        for name, values in found.items()
        if np.isfinite(values).any()
    }
    return {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}

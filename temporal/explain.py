"""What decides a temporal model's answer about one video: its logits when it has seen only the
beginning, and when it does not see a part.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .model import TemporalClassifier

TOKENS_AT_ONCE = 16_384


def even_spans(num_frames: int, most: int) -> list[tuple[int, int]]:
    """Divides frames into so many spans of about equal length, or into single frames.

    >>> even_spans(5, 2), even_spans(2, 10)
    ([(0, 2), (2, 5)], [(0, 1), (1, 2)])
    """
    count = min(num_frames, most)
    ends = [number * num_frames // count for number in range(count + 1)]
    return list(pairwise(ends))


@torch.inference_mode()
def prefix_logits(
    model: TemporalClassifier, features: Tensor, positions: Tensor, lengths: Sequence[int]
) -> Iterator[Tensor]:
    """Yields a video's logits [C] when only its first frames are seen, for each of some lengths;
    the mean over its views.

    Args:
        model: in evaluation mode.
        features: [V, T, D].
        positions: [T] int.
        lengths: at least 1, at most T.
    """
    V = len(features)
    for length in lengths:
        yield model(features[:, :length], positions[:length].expand(V, -1)).mean(0)


@torch.inference_mode()
def logits_without(
    model: TemporalClassifier,
    features: Tensor,
    positions: Tensor,
    spans: Sequence[tuple[int, int]],
) -> Iterator[Tensor]:
    """Yields a video's logits [C] when some of its frames are not seen, for each of some spans;
    the mean over its views.

    What is hidden is masked: no token looks at it, and all others keep their positions.

    Args:
        model: in evaluation mode.
        features: [V, T, D].
        positions: [T] int.
        spans: half open, of frames.
    """
    _, T, D = features.shape
    at_once = max(1, TOKENS_AT_ONCE // T)
    frames = torch.arange(T, device=features.device)
    for first in range(0, len(spans), at_once):
        ends = torch.tensor(spans[first : first + at_once], device=features.device)
        is_hidden = (frames >= ends[:, :1]) & (frames < ends[:, 1:])  # [B, T]
        B = len(ends)
        of_views = [
            model(view.expand(B, T, D), positions.expand(B, T), ~is_hidden) for view in features
        ]
        yield from torch.stack(of_views).mean(0)

"""From logits to segments: Viterbi against all paths, short runs, scores and times."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.segmentation import (
    Decoding,
    decode_labels,
    runs,
    segments_of,
    viterbi,
    without_short_runs,
)

SINGLE = TemporalConfig(feature_dim=12, num_classes=3, task="frames", background_class=0)
SEVERAL = TemporalConfig(feature_dim=12, num_classes=2, task="frames-multi-label")


def _score(log_probs: np.ndarray, path: tuple[int, ...], cost: float) -> float:
    changes = sum(a != b for a, b in pairwise(path))
    return sum(row[label] for row, label in zip(log_probs, path, strict=True)) - cost * changes


@pytest.mark.parametrize("cost", [0.0, 0.7, 3.0])
def test_viterbi_finds_the_best_of_all_paths(cost: float) -> None:
    generator = np.random.default_rng(0)
    sequences = [np.log(generator.dirichlet(np.ones(3), size=length)) for length in (1, 6, 2, 7, 5)]
    for one, found in zip(sequences, viterbi(sequences, cost), strict=True):
        best = max(product(range(3), repeat=len(one)), key=lambda path: _score(one, path, cost))
        assert _score(one, tuple(found.tolist()), cost) == pytest.approx(_score(one, best, cost))
        (alone,) = viterbi([one], cost)
        assert alone.tolist() == found.tolist()


def test_short_runs_go_to_the_more_probable_neighbor() -> None:
    probs = np.full((10, 3), 0.1)
    probs[:4, 0] = probs[4:6, 1] = probs[6:, 2] = 0.8
    probs[4:6, 2] = 0.3
    seconds = np.arange(10) / 10
    assert without_short_runs(np.log(probs), seconds, 0.2).tolist() == [0] * 4 + [1] * 2 + [2] * 4
    assert without_short_runs(np.log(probs), seconds, 0.25).tolist() == [0] * 4 + [2] * 6
    assert without_short_runs(np.log(probs), seconds, 5.0).tolist() == [2] * 10


@pytest.mark.parametrize("method", ["viterbi", "argmax"])
def test_segments_have_times_and_scores(method: str) -> None:
    logits = torch.zeros(6, 3)
    logits[:2, 0] = logits[2:5, 2] = logits[5:, 0] = 9.0
    seconds = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    decoding = Decoding(method=method, min_seconds=0.1)  # type: ignore[arg-type]
    (labels,) = decode_labels([logits], [seconds], SINGLE, decoding)
    (segment,) = segments_of("v", logits, labels, seconds, ["none", "a", "b"], SINGLE)
    assert (segment.start, segment.end, segment.label) == (1.0, 4.0, "b")
    assert segment.score == pytest.approx(float(logits.softmax(-1)[2, 2]))


def test_several_classes_may_overlap() -> None:
    logits = torch.full((8, 2), -6.0)
    logits[1:5, 0] = logits[3:7, 1] = 6.0
    seconds = np.arange(8.0)
    for method in ("viterbi", "argmax"):
        decoding = Decoding(method=method)  # type: ignore[arg-type]
        (labels,) = decode_labels([logits], [seconds], SEVERAL, decoding)
        assert labels.dtype == bool
        found = segments_of("v", logits, labels, seconds, ["a", "b"], SEVERAL)
        assert [(one.start, one.end, one.label) for one in found] == [(1, 5, "a"), (3, 7, "b")]


def test_an_empty_sequence_has_no_runs() -> None:
    assert runs(np.empty(0)) == []

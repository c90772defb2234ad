"""Metrics of segments: by hand, and against a second implementation on random sequences."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.frame_labels import FrameLabels
from vtnpipe.temporal.intervals import resampled_intervals
from vtnpipe.temporal.metrics import average_precisions
from vtnpipe.temporal.segment_metrics import FrameCounts, edit_score, frame_metrics
from vtnpipe.temporal.segmentation import Decoding

CONFIG = TemporalConfig(feature_dim=12, num_classes=3, task="frames", background_class=0)
ARGMAX = Decoding(method="argmax", min_seconds=1e-6)
NAMES = ["none", "a", "b"]
Pairs = list[tuple[list[int], list[int]]]  # predicted and true labels of each video


def _labels(*videos: list[int]) -> FrameLabels:
    return FrameLabels(
        values=torch.tensor([label for video in videos for label in video]),
        lengths=[len(video) for video in videos],
        times=[np.arange(float(len(video))) for video in videos],
    )


def _logits(labels: list[int], *, sure: float = 5.0) -> Tensor:
    return sure * torch.nn.functional.one_hot(torch.tensor(labels), 3).float()


def test_metrics_of_one_video_by_hand() -> None:
    true = [0, 1, 1, 1, 1, 0, 2, 2, 2, 2]
    found = [0, 0, 1, 1, 1, 0, 2, 2, 1, 1]
    metrics = frame_metrics([_logits(found)], _labels(true), NAMES, CONFIG, ARGMAX)
    assert metrics["frame_accuracy"] == pytest.approx(7 / 10)
    assert metrics["frame_accuracy_without_background"] == pytest.approx(5 / 8)
    # Predicted a, b, a against a, b: one edit of three. Overlaps: a 3/4, b 2/4, and a wrong a.
    assert metrics["edit"] == pytest.approx(1 - 1 / 3)
    for name in ("f1@10", "f1@25", "f1@50"):
        assert metrics[name] == pytest.approx(2 * 2 / (3 + 2))
    assert metrics.segments == {"none": (0, 0, 0), "a": (1, 2, 1), "b": (1, 1, 1)}
    # Equal scores: the first a comes first. At 70%, b with 50% is not found.
    assert metrics["map@50"] == pytest.approx(1.0)
    assert metrics["map@70"] == pytest.approx(0.5)
    assert metrics.per_class == {
        "none": pytest.approx(1.0),
        "a": pytest.approx(3 / 4),
        "b": pytest.approx(2 / 4),
    }
    assert metrics.confusion == [[2, 0, 0], [1, 3, 0], [0, 2, 2]]
    assert list(metrics.to_json())[:4] == [
        *("frame_accuracy", "frame_accuracy_without_background", "edit", "f1@10")
    ]


def test_frames_that_are_not_labeled_do_not_count() -> None:
    true = [-1, -1, 1, 1, 0, -1]
    found = [2, 2, 1, 1, 0, 1]
    metrics = frame_metrics([_logits(found)], _labels(true), NAMES, CONFIG, ARGMAX)
    assert metrics["frame_accuracy"] == metrics["edit"] == metrics["f1@50"] == 1.0
    assert metrics["map"] == 1.0


def test_a_split_without_events() -> None:
    metrics = frame_metrics([_logits([0, 0])], _labels([0, 0]), NAMES, CONFIG, ARGMAX)
    assert metrics["frame_accuracy"] == metrics["edit"] == 1.0
    assert (
        metrics["f1@10"] is metrics["map"] is metrics["frame_accuracy_without_background"] is None
    )


def _plain_segments(labels: list[int]) -> list[tuple[int, int, int]]:
    found, begin = [], 0
    for at in range(1, len(labels) + 1):
        if at == len(labels) or labels[at] != labels[begin]:
            if labels[begin] != 0:
                found.append((begin, at, labels[begin]))
            begin = at
    return found


def _plain_edit(one: list[int], other: list[int]) -> float:
    table = np.zeros((len(one) + 1, len(other) + 1))
    table[:, 0], table[0] = range(len(one) + 1), range(len(other) + 1)
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            table[i, j] = min(
                table[i - 1, j] + 1,
                table[i, j - 1] + 1,
                table[i - 1, j - 1] + (one[i - 1] != other[j - 1]),
            )
    return 1 - table[-1, -1] / max(len(one), len(other), 1)


def _plain_iou(one: Any, other: Any) -> float:
    shared = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (max(one[1], other[1]) - min(one[0], other[0]))


def _plain_f1(videos: Pairs, overlap: float) -> float:
    """As published with MS-TCN: each prediction in its order, against the best of its class."""
    tp = fp = fn = 0
    for found, true in videos:
        truths, hits = _plain_segments(true), set()
        for one in _plain_segments(found):
            ious = [_plain_iou(one, t) * (one[2] == t[2]) for t in truths]
            best = int(np.argmax(ious)) if ious else -1
            if best >= 0 and ious[best] >= overlap and best not in hits:
                tp += 1
                hits.add(best)
            else:
                fp += 1
        fn += len(truths) - len(hits)
    precision, recall = tp / max(1, tp + fp), tp / max(1, tp + fn)
    return 2 * precision * recall / max(1e-12, precision + recall)


def _plain_ap(predictions: list[Any], truths: list[Any], overlap: float) -> float:
    """As ActivityNet's evaluation: of (video, begin, end, score) and (video, begin, end)."""
    taken, is_match = set(), []
    for video, *span, _ in sorted(predictions, key=lambda one: -one[3]):
        ious = sorted(
            ((_plain_iou(span, one[1:]), n) for n, one in enumerate(truths) if one[0] == video),
            reverse=True,
        )
        chosen = next((n for iou, n in ious if iou >= overlap and n not in taken), None)
        taken |= set() if chosen is None else {chosen}
        is_match.append(chosen is not None)
    hits = np.cumsum(is_match)
    precision = [0.0, *(hits / (np.arange(len(hits)) + 1)), 0.0]
    recall = [0.0, *(hits / len(truths)), 1.0]
    for n in range(len(precision) - 2, -1, -1):
        precision[n] = max(precision[n], precision[n + 1])
    return sum(
        (recall[n] - recall[n - 1]) * precision[n]
        for n in range(1, len(recall))
        if recall[n] != recall[n - 1]
    )


def _random_videos(
    seed: int,
) -> tuple[list[Tensor], FrameLabels, list[tuple[list[int], list[int]]]]:
    generator = np.random.default_rng(seed)
    logits, videos = [], []
    for _ in range(5):
        lengths = generator.integers(2, 12, size=8)
        true = [int(label) for label, n in zip(generator.integers(0, 3, 8), lengths, strict=True)
                for _ in range(n)]  # fmt: skip
        noise = generator.normal(0, 1.0, (len(true), 3)).cumsum(0) / 3
        one = torch.tensor(noise) + _logits(true, sure=1.5)
        logits.append(one.float())
        videos.append((one.float().argmax(1).tolist(), true))
    return logits, _labels(*(true for _, true in videos)), videos


@pytest.mark.parametrize("seed", range(6))
def test_metrics_equal_a_second_implementation(seed: int) -> None:
    logits, labels, videos = _random_videos(seed)
    metrics = frame_metrics(logits, labels, NAMES, CONFIG, ARGMAX)
    pairs = [pair for found, true in videos for pair in zip(found, true, strict=True)]
    assert metrics["frame_accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    events = [a == b for a, b in pairs if b]
    assert metrics["frame_accuracy_without_background"] == pytest.approx(np.mean(events))
    edits = [
        _plain_edit([s[2] for s in _plain_segments(a)], [s[2] for s in _plain_segments(b)])
        for a, b in videos
    ]
    assert metrics["edit"] == pytest.approx(np.mean(edits))
    for overlap in (10, 25, 50):
        assert metrics[f"f1@{overlap}"] == pytest.approx(_plain_f1(videos, overlap / 100))
    for overlap in (30, 50, 70):
        found = []
        for label in (1, 2):
            predictions = [
                (n, b, e, float(logits[n].softmax(-1).double()[b:e, label].mean()))
                for n, (a, _) in enumerate(videos)
                for b, e, k in _plain_segments(a)
                if k == label
            ]
            truths = [
                (n, b, e)
                for n, (_, t) in enumerate(videos)
                for b, e, k in _plain_segments(t)
                if k == label
            ]
            found.append(_plain_ap(predictions, truths, overlap / 100))
        assert metrics[f"map@{overlap}"] == pytest.approx(np.mean(found))


def test_a_resample_counts_a_video_as_often_as_it_is_drawn() -> None:
    logits, labels, _ = _random_videos(1)
    over = FrameCounts(logits, labels, CONFIG, ARGMAX).over
    index = np.array([0, 2, 2, 4])
    truths = labels.of_videos
    drawn = FrameLabels(
        values=torch.cat([truths[n] for n in index.tolist()]),
        lengths=[labels.lengths[n] for n in index.tolist()],
        times=[labels.times[n] for n in index.tolist()],
    )
    again = frame_metrics([logits[n] for n in index.tolist()], drawn, NAMES, CONFIG, ARGMAX)
    assert over(index) == {name: pytest.approx(again[name]) for name in again.names}
    intervals = resampled_intervals(over, len(logits), num_resamples=50)
    whole = over(np.arange(len(logits)))
    for name in ("frame_accuracy", "f1@50", "map"):
        assert intervals[name][0] <= whole[name] <= intervals[name][1]


def test_edit_score_equals_the_plain_one() -> None:
    generator = np.random.default_rng(3)
    for _ in range(50):
        one, other = (generator.integers(0, 3, generator.integers(0, 9)).tolist() for _ in "ab")
        assert edit_score(one, other) == pytest.approx(_plain_edit(one, other))


def test_several_classes_a_frame() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=2, task="frames-multi-label")
    true = torch.zeros(6, 2)
    true[:4, 0] = true[2:, 1] = 1.0
    labels = FrameLabels(values=true, lengths=[6], times=[np.arange(6.0)])
    metrics = frame_metrics([8 * true - 4], labels, ["a", "b"], config, ARGMAX)
    assert metrics.names[0] == "frame_mean_average_precision"
    assert metrics["frame_mean_average_precision"] == metrics["f1@50"] == metrics["map"] == 1.0
    assert metrics.segments == {"a": (1, 1, 1), "b": (1, 1, 1)}
    assert metrics.confusion is None
    worse = frame_metrics([(8 * true - 4).flip(1)], labels, ["a", "b"], config, ARGMAX)
    assert (worse["f1@50"] or 0) < 1


def test_average_precision_of_frames_over_resamples() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=2, task="frames-multi-label")
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(n, 2, generator=generator) for n in (5, 9, 7)]
    values = torch.cat([(one + torch.randn(one.shape) > 0).float() for one in logits])
    values[6] = -1  # not labeled
    lengths = [5, 9, 7]
    labels = FrameLabels(
        values=values, lengths=lengths, times=[np.arange(n) / 1.0 for n in lengths]
    )
    over = FrameCounts(logits, labels, config, ARGMAX).over
    chosen = torch.cat([logits[n] for n in (1, 1, 2)])
    truth = torch.cat([labels.of_videos[n] for n in (1, 1, 2)])
    kept = truth[:, 0] >= 0
    expected = average_precisions(chosen[kept], truth[kept])
    found = over(np.array([1, 1, 2]))["frame_mean_average_precision"]
    assert found == pytest.approx(np.mean([one for one in expected if one is not None]))

"""Labels of frames from segments, and their loss."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vtnpipe.manifests.errors import ManifestError
from vtnpipe.manifests.segments import Segment, read_segments, write_segments
from vtnpipe.manifests.times import seconds_edges
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.frame_labels import label_frames, segment_classes, unknown_segments
from vtnpipe.temporal.segmentation import runs
from vtnpipe.temporal.tasks import LossOptions, task_losses

SEGMENTS = [
    Segment("v", 1.0, 2.0, "b", where="s.csv:2"),
    Segment("v", 2.0, 3.0, "a", where="s.csv:3"),
    Segment("v", 4.0, 5.0, "", where="s.csv:4"),
    Segment("w", 0.0, 1.0, "c", where="s.csv:5"),
]
TIMES = {"v": np.arange(0.0, 5.0, 0.5), "w": np.arange(4.0)}


def _values(segments: list[Segment] = SEGMENTS, task: Any = "frames", **options: Any) -> Any:
    names = options.pop("names", ["a", "b", "c", "none"])
    return label_frames(segments, ["v"], TIMES.__getitem__, names, task, "none").values.tolist()


def test_a_frame_has_the_class_of_its_segment() -> None:
    # Half open: the frame at 2 s is of the second segment. Of an empty label: not labeled.
    assert _values() == [3, 3, 1, 1, 0, 0, 3, 3, -1, -1]
    labels = label_frames(SEGMENTS, ["w", "v"], TIMES.__getitem__, ["a", "b", "c", "none"],
                          "frames", "none")  # fmt: skip
    assert labels.lengths == [4, 10]
    assert next(one.tolist() for one in labels.of_videos) == [2, 3, 3, 3]
    assert int(labels.is_labeled.sum()) == 12
    found = labels.at([None, TIMES["v"][[1, 2]]])
    assert (found.values.tolist(), found.lengths) == ([3, 1], [2])


def test_several_classes_may_overlap() -> None:
    overlapping = [*SEGMENTS[:3], Segment("v", 1.5, 2.5, "a")]
    found = torch.tensor(_values(overlapping, "frames-multi-label", names=["a", "b"]))
    assert found[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, -1, -1]
    assert found[:, 1].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, -1, -1]


def test_classes_are_those_of_the_training_videos() -> None:
    assert segment_classes(SEGMENTS, ["v"], "frames", "none") == ["a", "b", "none"]
    assert segment_classes(SEGMENTS, ["v"], "frames", "b") == ["a", "b"]
    assert segment_classes(SEGMENTS, ["v", "w"], "frames-multi-label", "none") == ["a", "b", "c"]
    with pytest.raises(ManifestError, match="no training video has a segment with a label"):
        segment_classes(SEGMENTS, ["x"], "frames", "none")


def test_segments_that_do_not_fit_are_named() -> None:
    (note,) = unknown_segments(SEGMENTS, ["v"])
    assert note.startswith(
        "1 segment of videos that are not in the manifest are ignored, the first"
    )
    assert unknown_segments(SEGMENTS, ["v", "w", "x"]) == []
    with pytest.raises(
        ManifestError, match=r"s\.csv:2: video_id 'v' is not in the manifest, as no"
    ):
        unknown_segments(SEGMENTS, ["x"])
    late = [SEGMENTS[0], replace_times(SEGMENTS[1], 4.0, 9.0)]
    with pytest.raises(ManifestError, match=r"s\.csv:3: end 9 is beyond the end of the video"):
        _values(late)
    overlapping = [SEGMENTS[0], replace_times(SEGMENTS[1], 1.5, 2.5)]
    with pytest.raises(ManifestError, match=r"s\.csv:3: begins at 1\.5 s, before the segment of"):
        _values(overlapping)
    with pytest.raises(ManifestError, match=r"s\.csv:2: label 'b' is not one of the model's 2"):
        _values(names=["a", "none"])
    with pytest.raises(ManifestError, match="--background none: it is not one of"):
        _values(names=["a", "b"])


def replace_times(segment: Segment, start: float, end: float) -> Segment:
    return segment._replace(start=start, end=end)


def test_the_loss_is_the_mean_over_labeled_frames_without_padding() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=3, task="frames")
    logits = torch.randn(2, 5, 3)
    targets = torch.tensor([[0, 1, -1, 2, 0], [1, 1, 0, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    losses = task_losses(logits, targets, config, mask=mask)
    first = F.cross_entropy(logits[0, [0, 1, 3, 4]], targets[0, [0, 1, 3, 4]])
    second = F.cross_entropy(logits[1, :2], targets[1, :2])
    torch.testing.assert_close(losses, torch.stack([first, second]))
    several = replace(config, task="frames-multi-label")
    labels = F.one_hot(targets.clamp(min=0), 3).float()
    labels[0, 2] = -1
    losses = task_losses(logits, labels, several, mask=mask)
    kept = [0, 1, 3, 4]
    expected = F.binary_cross_entropy_with_logits(logits[0, kept], labels[0, kept])
    torch.testing.assert_close(losses[0], expected)


def test_the_smoothing_loss_is_that_of_ms_tcn() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=3, task="frames")
    logits, targets = 8 * torch.randn(1, 6, 3), torch.zeros(1, 6, dtype=torch.long)
    plain = task_losses(logits, targets, config)
    smooth = task_losses(logits, targets, config, LossOptions(smoothing=0.15))
    log_probs = logits.log_softmax(-1)[0]
    steps = (log_probs[1:] - log_probs[:-1]).square().clamp(0, 16).mean()
    torch.testing.assert_close(smooth - plain, (0.15 * steps)[None])


@pytest.mark.parametrize("fps", [15.0, 24.0, 25.0, 30000 / 1001])
def test_labels_of_frames_survive_a_segment_file(tmp_path: Path, fps: float) -> None:
    """Also where times are written with six decimals, as in label tracks."""
    generator = np.random.default_rng(0)
    seconds = np.arange(300) / fps
    true = np.repeat(generator.integers(0, 2, 300), generator.integers(1, 9, 300))[:300]
    edges = seconds_edges(seconds)
    segments = [
        Segment("v", float(edges[begin]), float(edges[end]), "ab"[label])
        for begin, end, label in runs(true)
    ]
    write_segments(segments, tmp_path / "s.csv")
    rounded = [one._replace(start=round(one.start, 6), end=round(one.end, 6)) for one in segments]
    for some in (read_segments(tmp_path / "s.csv"), rounded):
        labels = label_frames(some, ["v"], lambda _: seconds, ["a", "b", "none"], "frames", "none")
        assert labels.values.tolist() == true.tolist()


def test_what_a_user_should_know_about_labels() -> None:
    partial = [*SEGMENTS, Segment("v", 6.0, 9.0, "a")]
    arguments: tuple[Any, ...] = (["a", "b", "c", "none"], "frames", "none")
    with pytest.raises(ManifestError, match="beyond the end"):
        label_frames(partial, ["v"], TIMES.__getitem__, *arguments)
    labels = label_frames(
        partial, ["v", "x"], {**TIMES, "x": np.arange(3.0)}.__getitem__, *arguments,
        is_partial=lambda video_id: video_id == "v",
    )  # fmt: skip
    assert labels.notes("val") == [
        "split val: 1 video of 2 without a segment, all background; give a segment with an empty "
        "label to what is not annotated",
        "split val: 1 segment shorter than the time between two frames",
    ]

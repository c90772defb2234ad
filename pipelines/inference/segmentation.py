"""Segmentation: segments of a split's videos, from stored features or from the video files.

The predictions of a split are stored in `predictions/` of a run folder, as those of clips are:

SPLIT.csv   segments: video_id, start, end, label, score
SPLIT.npz   video_ids, lengths, classes; of all frames end to end: logits, targets, timestamps,
            frame_index
SPLIT.json  metrics, intervals, counts, settings, model and source
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...manifests.annotations import EXTENSIONS
from ...manifests.atomic import atomic_path, read_json, write_json
from ...manifests.errors import SettingsError
from ...manifests.feature_store import FeatureStore
from ...manifests.segments import (
    Segment,
    write_activitynet,
    write_audacity,
    write_segments,
)
from ...temporal.clips import Windows
from ...temporal.config import TemporalConfig
from ...temporal.dataset import ClipDataset
from ...temporal.distributed import Accelerator
from ...temporal.feature_reader import FeatureReader
from ...temporal.frame_labels import FrameLabels
from ...temporal.inference import predict_frames
from ...temporal.segmentation import Decoding, decode_labels, segments_of
from ...temporal.time_table import Frames, Times
from ..settings import above, at_least, check_unset, make_folder, setting
from .predictions import REMEDY, stored_arrays


def decoding_setting() -> Any:
    """Return the setting for the decoding of segments."""
    return setting(
        Decoding.method,
        help="Segments of a task on frames: viterbi, the likeliest sequence, in which each change "
        "has a cost; argmax: each frame on its own, without short segments.",
    )


def transition_cost_setting() -> Any:
    """Return the setting for the cost of a change of class."""
    return setting(
        Decoding.transition_cost,
        help="Cost of a change in nats, for viterbi: a higher one gives fewer segments.",
        check=at_least(0),
    )


def min_seconds_setting() -> Any:
    """Return the setting for the shortest segment."""
    return setting(Decoding.min_seconds, help="Shortest segment, for argmax.", check=above(0))


class SegmentedVideo(NamedTuple):
    """A video with the logits of its frames.

    Attributes:
        video_id: id or path.
        logits: [T, C].
        times: [T] seconds.
        frame_index: [T] indices of the frames in the file.
    """

    video_id: str
    logits: Tensor
    times: Times
    frame_index: Frames


def frame_logits_of_features(
    temporal: nn.Module,
    store: FeatureStore,
    video_ids: Sequence[str],
    *,
    config: TemporalConfig,
    accelerator: Accelerator,
) -> Iterator[SegmentedVideo]:
    """Yield the logits of the frames of stored videos, long videos first.

    Args:
        temporal: temporal model of a task on frames, prepared by `accelerator`.
        store: features that fit the model, of all the videos.
        video_ids: ids of the videos.
        config: configuration of the model.
        accelerator: see `temporal/distributed.py`.

    Raises:
        FeaturesError: a feature is not finite.
    """
    dataset = ClipDataset(
        FeatureReader(store),
        video_ids,
        torch.zeros(len(video_ids)),  # targets are not used
        Windows(num_frames=config.window_frames),
        position_fps=config.position_fps,
    )
    for number, logits in predict_frames(temporal, dataset, accelerator=accelerator):
        video_id = video_ids[number]
        frame_index, times = store.times(video_id)
        yield SegmentedVideo(video_id, logits, times, frame_index)


def segment_video(
    video: SegmentedVideo, class_names: Sequence[str], config: TemporalConfig, decoding: Decoding
) -> tuple[npt.NDArray[Any], list[Segment]]:
    """Return the labels of a video's frames, see `decode_labels`, and its segments."""
    (labels,) = decode_labels([video.logits], [video.times], config, decoding)
    segments = segments_of(video.video_id, video.logits, labels, video.times, class_names, config)
    return labels, segments


def segment_line(one: Segment) -> str:
    """Return a segment in one line."""
    return f"  {one.start:9.2f} to {one.end:9.2f} s  {one.score or 0.0:6.1%}  {one.label}"


def check_segments_output(path: Path, num_videos: int | None) -> None:
    """Refuse an output that has no format for segments.

    Raises:
        SettingsError: its name does not end in .csv, .json or .txt; or it is a label track, and
            there are several videos.
    """
    if path.suffix not in (".csv", ".json", ".txt", ""):
        raise SettingsError(
            f"--output {path}: its name must end in .csv, .json (as for ActivityNet) or .txt (an "
            "Audacity label track), or be a folder of label tracks"
        )
    if path.suffix == ".txt" and num_videos != 1:
        raise SettingsError(
            f"--output {path}: a label track is of one video; give a folder for several"
        )


def write_segments_output(path: Path, segments: dict[str, list[Segment]]) -> None:
    """Write segments by video_id, in the format that the path's extension names."""
    everything = [one for of_video in segments.values() for one in of_video]
    if path.suffix == ".csv":
        write_segments(everything, path)
    elif path.suffix == ".json":
        write_activitynet(everything, path, list(segments))
    elif path.suffix == ".txt":
        write_audacity(everything, path)
    else:
        make_folder(path)
        names = _track_names(list(segments))
        for video_id, of_video in segments.items():
            write_audacity(of_video, path / f"{names[video_id]}.txt")


def _track_names(video_ids: Sequence[str]) -> dict[str, str]:
    """Return video_id → name of its label track: that of the file, or the id if files repeat it.

    >>> _track_names(["a/v1.mp4", "b/v1.mp4", "c/v2.0"])
    {'a/v1.mp4': 'a%2Fv1.mp4', 'b/v1.mp4': 'b%2Fv1.mp4', 'c/v2.0': 'v2.0'}
    """
    names = {}
    for video_id in video_ids:
        path = Path(video_id)
        names[video_id] = path.stem if path.suffix.lower() in EXTENSIONS else path.name
    counts = Counter(names.values())
    return {
        video_id: quote(name if counts[name] == 1 else video_id, safe=" ")
        for video_id, name in names.items()
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class FramePredictions:
    """Predictions of a split's frames, as stored.

    Attributes:
        videos: videos with the logits of their frames.
        targets: labels of their frames.
        record: contents of the JSON file.
    """

    videos: list[SegmentedVideo]
    targets: FrameLabels
    record: dict[str, Any]

    @property
    def video_ids(self) -> list[str]:
        """Ids of the videos."""
        return [one.video_id for one in self.videos]


def write_frame_predictions(
    folder: Path,
    name: str,
    predictions: FramePredictions,
    class_names: Sequence[str],
    config: TemporalConfig,
    decoding: Decoding,
) -> None:
    """Write the three files of a split, the JSON file last.

    Raises:
        SettingsError: the folder cannot be created.
        StorageError: a file cannot be written.
    """
    make_folder(folder)
    videos = predictions.videos
    segments = [
        one for video in videos for one in segment_video(video, class_names, config, decoding)[1]
    ]
    write_segments(segments, folder / f"{name}.csv")
    with atomic_path(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            video_ids=np.array(predictions.video_ids),
            lengths=np.array(predictions.targets.lengths),
            logits=torch.cat([video.logits for video in videos]).numpy(),
            targets=predictions.targets.values.numpy(),
            timestamps=np.concatenate([video.times for video in videos]),
            frame_index=np.concatenate([video.frame_index for video in videos]),
            classes=np.array(class_names, dtype=np.str_),
        )
    write_json(predictions.record, folder / f"{name}.json")


def read_frame_predictions(folder: Path, name: str) -> FramePredictions | None:
    """Return the stored predictions of a split; None if there are none.

    Raises:
        FeaturesError: a file is damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    record = read_json(path, REMEDY)
    with stored_arrays(path.with_suffix(".npz")) as arrays:
        lengths = arrays["lengths"].tolist()
        times, frame_index = (
            np.split(arrays[name], np.cumsum(lengths)[:-1])
            for name in ("timestamps", "frame_index")
        )
        logits = torch.from_numpy(arrays["logits"]).split(lengths)
        ids, targets = arrays["video_ids"].tolist(), torch.from_numpy(arrays["targets"])
    videos = [SegmentedVideo(*one) for one in zip(ids, logits, times, frame_index, strict=True)]
    return FramePredictions(
        videos=videos,
        targets=FrameLabels(values=targets, lengths=lengths, times=times),
        record=record,
    )


def decoding_of(settings: Any) -> Decoding:
    """Return the options of decoding of a command's settings.

    Raises:
        SettingsError: an option has no effect.
    """
    if settings.decoding == "argmax":
        check_unset(settings, ["transition_cost"], "--decoding argmax has none")
    else:
        check_unset(settings, ["min_seconds"], "--decoding viterbi has none")
    return Decoding(
        method=settings.decoding,
        transition_cost=settings.transition_cost,
        min_seconds=settings.min_seconds,
    )

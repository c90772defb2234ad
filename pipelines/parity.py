"""`vtnpipe parity`: a sample of frames again by the plainest path, next to the stored features.

The plainest path is PyAV, timm's own transform on PIL images, and the backbone in float32, eager,
one frame at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from ..manifests.errors import FeaturesError, VideoError
from ..manifests.manifest import VideoRow, read_manifest
from ..temporal.run_folder import RunFolder
from . import common_settings
from .console import say
from .settings import at_least, check_settings, setting

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from ..extract.backbone import Backbone
    from ..extract.transform import Transform
    from ..manifests.feature_store import FeatureStore, VideoFeatures

FRAMES_PER_VIDEO = 16
STRETCH_FRAMES = 256
MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class ParitySettings:
    """The settings of `vtnpipe parity`."""

    sample: int = setting(64, help="Frames to compute again.", check=at_least(1))
    model: str | None = setting(
        None, help="Also say how far its logits move, on the sampled frames.", metavar="MODEL"
    )
    seed: int = common_settings.seed("Of the sample.")

    def __post_init__(self) -> None:
        check_settings(self)


class FrameParity(NamedTuple):
    """One view of one frame: how the stored features compare with the plainest path's.

    Attributes:
        cosine: between the two.
        error: the largest difference of a value.
    """

    video_id: str
    frame_index: int
    view: str
    cosine: float
    error: float


class LogitParity(NamedTuple):
    """A video's sampled frames: the largest change of a logit, and whether the decision changes."""

    video_id: str
    change: float
    is_same_decision: bool


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What was compared."""

    frames: list[FrameParity]
    logits: list[LogitParity]

    @property
    def least_cosine(self) -> float:
        """Of all frames."""
        return min(frame.cosine for frame in self.frames)


def parity(
    features: str | Path,
    settings: ParitySettings | None = None,
    *,
    console: Console | None = None,
) -> ParityReport:
    """Compares a sample of stored features with the plainest path.

    Args:
        features: a feature folder; its videos must be where its manifest says.
        settings: by default, `ParitySettings()`.
        console: for the results; by default, nothing is printed.

    Raises:
        VtnpipeError: the folder is none, a video can't be read, or the model doesn't fit.
    """
    from ..manifests.shards import open_features

    settings = settings or ParitySettings()
    console = console or Console(quiet=True)
    store = open_features(features)
    rows = {row.video_id: row for row in read_manifest(store.folder.manifest)}
    backbone = _plain_backbone(store)
    compare_logits = None if settings.model is None else _logit_comparison(settings.model, store)
    frames, logits = [], []
    for video_id, chosen in draw_sample(store, settings.sample, settings.seed).items():
        video = store[video_id]
        plain = _plain_features(rows[video_id], video, chosen, backbone)
        stored = video.features[chosen].astype(np.float32).reshape(plain.shape)
        frames += _compare(video, chosen, stored, plain, backbone.transform.views)
        if compare_logits is not None:
            logits.append(compare_logits(video, chosen, stored, plain))
    report = ParityReport(frames=frames, logits=logits)
    _print(report, store, console)
    return report


def draw_sample(
    store: "FeatureStore", num_frames: int, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Random videos, and random rows [t] of each, increasing; as many frames as asked for, or all.

    Args:
        store: the features.
        num_frames: in all; at most 16 of a video unless there are too few videos, out of 256 that
            follow each other, so that little is decoded of a long one.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    ids = list(store)
    if not ids:
        raise FeaturesError(
            f"{store.folder.root}: holds no features to compare; extract some first"
        )
    ids = [ids[index] for index in generator.permutation(len(ids))]
    most = max(FRAMES_PER_VIDEO, -(-num_frames // len(ids)))
    sample: dict[str, npt.NDArray[np.int64]] = {}
    for video_id in ids:
        length = store.num_frames(video_id)
        count = min(most, length, num_frames - sum(map(len, sample.values())))
        if count:
            stretch = min(length, max(STRETCH_FRAMES, count))
            first = generator.integers(length - stretch + 1)
            sample[video_id] = first + np.sort(generator.choice(stretch, count, replace=False))
    return sample


def _plain_backbone(store: "FeatureStore") -> "Backbone":
    from ..extract.backbone import evaluation_transform, load_backbone
    from ..extract.preprocessing import Preprocessing

    identity = store.extraction["identity"]
    preprocessing = Preprocessing.from_json(identity["preprocessing"])
    return load_backbone(
        identity["backbone"],
        store.folder.backbone,
        digest=identity["weights_digest"],
        pool=identity["pool"],
        dtype="float32",
        transform=evaluation_transform(preprocessing, "cpu", identity["views"]),
    )


def _plain_features(
    row: VideoRow, video: "VideoFeatures", chosen: npt.NDArray[np.int64], backbone: "Backbone"
) -> npt.NDArray[np.float32]:
    """The features [t, V, D] of a video's chosen rows, by the plainest path.

    Raises:
        VideoError: a frame can't be read any more.
    """
    import torch
    from PIL import Image

    from ..extract.create_backbone import timm_steps
    from ..extract.decode.frames import Outcome
    from ..extract.decode.pool import DecodingChildren
    from ..extract.decode.protocol import Chunk, Decode

    transform = backbone.transform
    steps = timm_steps(transform.preprocessing)
    wanted = video.frame_index[chosen].tolist()
    found: dict[int, list[Tensor]] = {}
    begin, last = video.timestamps[chosen[[0, -1]]].tolist()
    request = Decode(row.path, begin, float(np.nextafter(last, np.inf)), decoder="pyav")
    with DecodingChildren() as children:
        for _, event in children.run([request]):
            if isinstance(event, Chunk):
                for image, index in zip(event.images, event.frame_index, strict=True):
                    if index in wanted:
                        found[index] = _plain_views(Image.fromarray(image), steps, transform)
            elif isinstance(event, Outcome) and event.status == "failed":
                raise VideoError(event.reason or "damaged", event.message)
    if missing := [index for index in wanted if index not in found]:
        raise VideoError(
            "damaged",
            f"{row.path}: frame {missing[0]} is stored, but can't be decoded any more; "
            "put the file back as it was",
        )
    with torch.inference_mode():
        rows = [[backbone.module(view[None])[0] for view in found[index]] for index in wanted]
    return np.stack([torch.stack(views).numpy() for views in rows])


def _plain_views(image: "Image", steps: Sequence[Any], transform: "Transform") -> "list[Tensor]":
    """The views of a PIL image as a backbone's input, each [3, h, w]."""
    from PIL import ImageOps

    from ..extract.transform import crop_offset

    *resize_steps, crop, to_tensor, normalise = steps
    for step in resize_steps:
        image = step(image)
    _, height, width = transform.preprocessing.input_size
    views = []
    for name in transform.views:
        if name in ("centre", "flip"):
            view = crop(image) if name == "centre" else ImageOps.mirror(crop(image))
        else:
            top, left = crop_offset(name, (image.height, image.width), (height, width))
            view = image.crop((left, top, left + width, top + height))
        views.append(normalise(to_tensor(view)))
    return views


def _compare(
    video: "VideoFeatures",
    chosen: npt.NDArray[np.int64],
    stored: npt.NDArray[np.float32],
    plain: npt.NDArray[np.float32],
    views: Sequence[str],
) -> list[FrameParity]:
    """One result for each view of each frame; both arrays are [t, V, D]."""
    products = (stored * plain).sum(-1)
    norms = np.linalg.norm(stored, axis=-1) * np.linalg.norm(plain, axis=-1)
    cosines = products / np.maximum(norms, np.finfo(np.float32).tiny)
    errors = np.abs(stored - plain).max(-1)
    return [
        FrameParity(video.video_id, index, view, float(cosines[t, v]), float(errors[t, v]))
        for t, index in enumerate(video.frame_index[chosen].tolist())
        for v, view in enumerate(views)
    ]


def _logit_comparison(model: str, store: "FeatureStore") -> "Callable[..., LogitParity]":
    """What compares a model's logits on a video's chosen frames, stored and plain [t, V, D]."""
    import torch

    from ..temporal.batch import frame_positions
    from ..temporal.tasks import decision
    from .models.model_folder import check_features, load_temporal, read_config

    files = RunFolder(Path(model))
    config = read_config(files)
    identity = store.extraction["identity"]
    check_features(config, identity, store.folder.root)
    temporal = load_temporal(files, config)
    centre = identity["views"].index("centre")

    def compare(
        video: "VideoFeatures",
        chosen: npt.NDArray[np.int64],
        *features: npt.NDArray[np.float32],
    ) -> LogitParity:
        positions = frame_positions(
            video.timestamps[chosen],
            video.frame_index[chosen],
            position_fps=config.temporal.position_fps,
            first=(float(video.timestamps[0]), int(video.frame_index[0])),
        )
        clips = (torch.from_numpy(one[None, :, centre]) for one in features)
        with torch.inference_mode():
            stored, plain = (temporal(clip, torch.from_numpy(positions)[None])[0] for clip in clips)
        decisions = {
            decision(logits, config.class_names, config.temporal.task) for logits in (stored, plain)
        }
        change = float((stored - plain).abs().max())
        return LogitParity(video.video_id, change, len(decisions) == 1)

    return compare


def _print(report: ParityReport, store: "FeatureStore", console: Console) -> None:
    frames = report.frames
    identity = store.extraction["identity"]
    num_videos = len({frame.video_id for frame in frames})
    cosines = [frame.cosine for frame in frames]
    say(
        console,
        f"{len(frames):,} features of {num_videos:,} videos, computed in {identity['precision']} "
        f"and stored in {identity['store']}, against PyAV, PIL and float32, frame by frame",
        f"cosine   least {min(cosines):.6f}, mean {np.mean(cosines):.6f}",
        f"error    largest {max(frame.error for frame in frames):.4g}, "
        f"mean of frames {np.mean([frame.error for frame in frames]):.4g}",
        "furthest",
    )
    for frame in sorted(frames, key=lambda frame: frame.cosine)[:MAX_LISTED]:
        say(
            console,
            f"  {frame.video_id} frame {frame.frame_index} {frame.view}: "
            f"cosine {frame.cosine:.6f}, error {frame.error:.4g}",
        )
    if report.logits:
        same = sum(one.is_same_decision for one in report.logits)
        say(
            console,
            f"logits   move by at most {max(one.change for one in report.logits):.4g}; "
            f"{same} of {len(report.logits)} decisions stay",
        )

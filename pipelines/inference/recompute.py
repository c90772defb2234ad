"""Recomputation of a sample of stored features by the plainest path, to check them.

The plainest path is PyAV, whole frames in RGB, timm's own transform on PIL images, and the eager
backbone in float32 on the CPU, one frame at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ...extract.backbone import Backbone, load_backbone
from ...extract.create_backbone import timm_steps
from ...extract.decode.frames import Outcome
from ...extract.decode.pool import DecoderPool
from ...extract.decode.protocol import Chunk, DecodeRequest
from ...extract.planes import PlaneResize
from ...extract.preprocessing import Transform
from ...extract.views import crop_offset
from ...manifests.errors import FeaturesError
from ...manifests.failures import VideoError
from ...manifests.feature_store import FeatureStore, VideoFeatures
from ...manifests.manifest import VideoRow, read_manifest

FRAMES_PER_VIDEO = 16  # unless there are too few videos
STRETCH_FRAMES = 256  # consecutive frames of a video from which its frames are drawn
SEED = 0


class FrameComparison(NamedTuple):
    """Difference between stored and recomputed features of one view of one frame.

    Attributes:
        video_id: id of the video.
        frame_index: index of the frame.
        view: name of the view.
        cosine: cosine of the two feature vectors.
        error: largest absolute difference.
    """

    video_id: str
    frame_index: int
    view: str
    cosine: float
    error: float


def recompute_sample(features: str | Path, num_frames: int) -> list[FrameComparison]:
    """Compare a random sample of stored features with the plainest path.

    Args:
        features: feature folder, whose videos must be where its manifest says.
        num_frames: number of frames to recompute.

    Raises:
        VtnpipeError: it is not a feature folder, or a video cannot be read.
    """
    store = FeatureStore(features)
    rows = {row.video_id: row for row in read_manifest(store.folder.manifest)}
    backbone = load_backbone(store.folder.backbone, store.spec, "cpu", dtype="float32")
    compared = []
    for video_id, chosen in draw_sample(store, num_frames, SEED).items():
        video = store[video_id]
        plain = _plain_features(rows[video_id], video, chosen, backbone, store.spec.as_planes)
        stored = video.features[chosen].astype(np.float32).reshape(plain.shape)
        compared += _compare(video, chosen, stored, plain, backbone.transform.views)
    return compared


def draw_sample(
    store: FeatureStore, num_frames: int, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Draw random videos, and random rows [t] of each, increasing.

    Args:
        store: the features.
        num_frames: total number of rows; all if there are fewer. At most 16 per video, unless there
            are too few videos, and out of 256 consecutive ones, so that little of a long video is
            decoded.
        seed: seed of the draw.
    """
    generator = np.random.default_rng(seed)
    ids = list(store)
    if not ids:
        raise FeaturesError(f"{store.folder.root}: contains no features; extract some first")
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


def _plain_features(
    row: VideoRow,
    video: VideoFeatures,
    chosen: npt.NDArray[np.int64],
    backbone: Backbone,
    as_planes: bool,
) -> npt.NDArray[np.float32]:
    """Return the features [t, V, D] of a video's chosen rows, by the plainest path.

    Args:
        row: the video.
        video: its stored features.
        chosen: rows of them [t].
        backbone: the backbone.
        as_planes: whether planes were resized before they were converted to RGB.

    Raises:
        VideoError: a frame cannot be decoded any more.
    """
    transform = backbone.transform
    is_timm = transform.preprocessing.style == "timm"
    steps = timm_steps(transform.preprocessing) if is_timm else []
    wanted = video.frame_index[chosen].tolist()
    found: dict[int, list[Tensor]] = {}
    begin, last = video.timestamps[chosen[[0, -1]]].tolist()
    end = float(np.nextafter(last, np.inf))
    request = DecodeRequest(row.path, begin, end, decoder="pyav", as_planes=as_planes)
    to_rgb = PlaneResize(lambda height, width: (height, width), "bilinear", torch.float32)
    with DecoderPool() as pool:
        for _, event in pool.decode([request]):
            if isinstance(event, Chunk):
                if event.format.is_rgb:
                    images = event.images
                else:
                    rgb = to_rgb(torch.from_numpy(event.data), event.format)
                    images = rgb.permute(0, 2, 3, 1).numpy()
                for image, index in zip(images, event.frame_index, strict=True):
                    if index in wanted:
                        found[index] = _plain_views(Image.fromarray(image), steps, transform)
            elif isinstance(event, Outcome) and event.status == "failed":
                raise VideoError(event.reason or "damaged", event.message)
    if missing := [index for index in wanted if index not in found]:
        raise VideoError(
            "damaged",
            f"{row.path}: frame {missing[0]} is stored, but cannot be decoded any more; restore "
            "the file",
        )
    with torch.inference_mode():
        rows = [[backbone.module(view[None])[0] for view in found[index]] for index in wanted]
    return np.stack([torch.stack(views).numpy() for views in rows])


def _plain_views(image: Image.Image, steps: Sequence[Any], transform: Transform) -> list[Tensor]:
    """Return the views of a PIL image as the backbone's inputs, [3, h, w] each.

    Args:
        image: the frame.
        steps: timm's steps; empty for another style, which has no plainer path than `transform`.
        transform: the transform under test.
    """
    if not steps:
        return list(transform.normalize(transform(np.array(image)[None])[0]))
    *resize_steps, crop, to_tensor, normalize = steps
    for step in resize_steps:
        image = step(image)
    _, height, width = transform.preprocessing.input_size
    views = []
    for name in transform.views:
        if name in ("center", "flip"):
            view = crop(image) if name == "center" else ImageOps.mirror(crop(image))
        else:
            top, left = crop_offset(name, (image.height, image.width), (height, width))
            view = image.crop((left, top, left + width, top + height))
        views.append(normalize(to_tensor(view)))
    return views


def _compare(
    video: VideoFeatures,
    chosen: npt.NDArray[np.int64],
    stored: npt.NDArray[np.float32],
    plain: npt.NDArray[np.float32],
    views: Sequence[str],
) -> list[FrameComparison]:
    """Compare arrays [t, V, D], view by view of each frame."""
    products = (stored * plain).sum(-1)
    norms = np.linalg.norm(stored, axis=-1) * np.linalg.norm(plain, axis=-1)
    cosines = products / np.maximum(norms, np.finfo(np.float32).tiny)
    errors = np.abs(stored - plain).max(-1)
    return [
        FrameComparison(video.video_id, index, view, float(cosines[t, v]), float(errors[t, v]))
        for t, index in enumerate(video.frame_index[chosen].tolist())
        for v, view in enumerate(views)
    ]

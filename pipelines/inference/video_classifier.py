"""Classification of video files in two of VTN's three modes of inference.

end-to-end  every frame through backbone and temporal model in one pass
chunked     the backbone in chunks of frames, then the temporal model once over all of them
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...extract.backbone import Backbone, evaluation_transform
from ...extract.batching import Batcher
from ...extract.decode.frames import Decoder, Outcome
from ...extract.decode.pool import DecoderPool
from ...extract.decode.protocol import Chunk, DecodeRequest, Selected
from ...extract.decode.sampling import Sampling
from ...extract.lanes import RowRequest, extract_rows
from ...extract.preprocessing import Transform
from ...manifests.errors import ManifestError, StoppedError
from ...manifests.manifest import VideoRow
from ...temporal.clips import ClipSampling, Windows, even_clip, frame_positions, generator_of
from ...temporal.distributed import Accelerator, all_of
from ...temporal.inference import Scored, never, video_frame_logits
from ...temporal.time_table import Frames, Times
from ..models.network import VideoTransformerNetwork
from .clip_reader import IndexedVideos

Mode = Literal["end-to-end", "chunked"]


class VideoFeatures(NamedTuple):
    """Features of one video, as a temporal model takes them.

    Attributes:
        features: [V, T, D].
        timestamps: [T] seconds.
        frame_index: [T] frame indices.
    """

    features: Tensor
    timestamps: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]

    def positions(self, position_fps: float | None, span: slice = slice(None)) -> Tensor:
        """Return the positions [t] of some frames, by default all, on the features' device."""
        positions = frame_positions(
            self.timestamps[span], self.frame_index[span], position_fps=position_fps
        )
        return torch.from_numpy(positions).to(self.features.device)

    def to(self, device: str) -> "VideoFeatures":
        """Return a copy with its features on a device."""
        return self._replace(features=self.features.to(device))


class VideoToClassify(NamedTuple):
    """Video to classify, clip by clip.

    Attributes:
        name: id or path.
        clips: requests of each clip, piece by piece; the whole video is one clip.
        first: time and frame index of its first frame; None if every clip begins with it.
    """

    name: str
    clips: list[list[DecodeRequest]]
    first: tuple[float, int] | None = None


class Classified(NamedTuple):
    """Logits of a video.

    Attributes:
        name: id or path.
        logits: [C], the mean over clips and views, or [T, C] of a task on frames; None if nothing
            could be decoded.
        outcome: outcome of decoding; the first one that is not `ok`.
        times: [T] seconds of the frames; None if nothing could be decoded.
        frame_index: [T] indices of the frames in the file; None if nothing could be decoded.
    """

    name: str
    logits: Tensor | None
    outcome: Outcome
    times: Times | None = None
    frame_index: Frames | None = None

    @property
    def fault(self) -> str:
        """Decoding error; empty if everything could be decoded."""
        reason = f"{self.outcome.reason}: {self.outcome.message}"
        return "" if self.outcome.status == "ok" else reason


class Piece(NamedTuple):
    """Decoded frames of one request.

    Attributes:
        inputs: [T, V, ...] inputs of a network (frames) or of its temporal model (features).
        timestamps: [T] seconds.
        frame_index: [T] frame indices.
        outcome: outcome of decoding.
    """

    inputs: Tensor
    timestamps: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    outcome: Outcome

    @property
    def features(self) -> VideoFeatures:
        """Features of the video, if the inputs are those of a temporal model."""
        return VideoFeatures(self.inputs.transpose(0, 1), self.timestamps, self.frame_index)


@dataclass(kw_only=True)
class VideoClassifier:
    """Classifies videos with a network, which it puts into evaluation mode.

    Attributes:
        network: the network, on its device.
        mode: mode of inference.
        chunk_frames: frames per backbone call; `chunked` only.
        num_decoder_processes: size of the decoder pool.
        shuffle_seed: seed of a random order of each clip's frames; None for their own order.
        should_stop: asked while a decoder process is waited for, see `DecoderPool`.
    """

    network: VideoTransformerNetwork
    mode: Mode = "chunked"
    chunk_frames: int = 32
    num_decoder_processes: int = 1
    shuffle_seed: int | None = None
    should_stop: Callable[[], bool] = never

    @torch.inference_mode()
    def __call__(self, videos: Sequence[VideoToClassify]) -> Iterator[Classified]:
        """Yield each video's logits, in order."""
        self.network.eval()
        requests = [piece for video in videos for clip in video.clips for piece in clip]
        owners = [
            (number, clip)
            for number, video in enumerate(videos)
            for clip, pieces in enumerate(video.clips)
            for _ in pieces
        ]
        num_processes = max(1, min(self.num_decoder_processes, len(requests)))
        with DecoderPool(num_processes, should_stop=self.should_stop) as pool:
            if self.mode == "chunked":
                found = _extract(self.network, requests, pool, self.chunk_frames)
            else:
                found = _decode(self.network, requests, pool)
            pieces = zip(owners, found, strict=True)
            for number, of_video in groupby(pieces, lambda pair: pair[0][0]):
                clips = [
                    [piece for _, piece in of_clip]
                    for _, of_clip in groupby(of_video, lambda pair: pair[0][1])
                ]
                yield self._classify(videos[number], clips)

    def _classify(self, video: VideoToClassify, clips: Sequence[Sequence[Piece]]) -> Classified:
        outcomes = [piece.outcome for clip in clips for piece in clip]
        outcome = next((one for one in outcomes if one.status != "ok"), outcomes[0])
        found = [
            self._logits(video, clip) for clip in clips if any(len(p.timestamps) for p in clip)
        ]
        if not found:
            return Classified(video.name, None, outcome)
        times, frame_index = (
            np.concatenate([getattr(piece, name) for clip in clips for piece in clip])
            for name in ("timestamps", "frame_index")
        )
        return Classified(video.name, torch.stack(found).mean(0), outcome, times, frame_index)

    def _logits(self, video: VideoToClassify, clip: Sequence[Piece]) -> Tensor:
        """Return the logits [C] of one clip, or [T, C] of its frames, the mean over its views."""
        config = self.network.config.temporal
        device = next(self.network.parameters()).device
        inputs = torch.cat([piece.inputs for piece in clip])
        times = np.concatenate([piece.timestamps for piece in clip])
        frame_index = np.concatenate([piece.frame_index for piece in clip])
        model = self.network.temporal if self.mode == "chunked" else self.network
        if config.is_per_frame:
            there = VideoFeatures(inputs.transpose(0, 1).to(device), times, frame_index)
            return video_frame_logits(
                model,
                there.features,
                partial(there.positions, config.position_fps),
                Windows(num_frames=config.window_frames),
            )
        positions = frame_positions(
            times, frame_index, position_fps=config.position_fps, first=video.first
        )
        if self.shuffle_seed is not None:
            order = generator_of(self.shuffle_seed, video.name).permutation(len(inputs))
            inputs = inputs[torch.from_numpy(order)]
        batch_positions = torch.from_numpy(positions)[None].to(device)
        views = [view[None].to(device) for view in inputs.unbind(1)]
        logits = torch.stack([model(view, batch_positions)[0].cpu() for view in views])
        precise = torch.promote_types(logits.dtype, torch.float32)  # autocast returns bfloat16
        return logits.to(precise).mean(0)


@torch.inference_mode()
def extract_features(
    network: VideoTransformerNetwork,
    requests: Sequence[DecodeRequest],
    *,
    chunk_frames: int = 32,
    num_decoder_processes: int = 1,
) -> Iterator[Piece]:
    """Yield the features [T, V, D] of each request, as in mode `chunked`.

    Args:
        network: the network, on its device; set to evaluation mode.
        requests: frames to decode.
        chunk_frames: frames per backbone call.
        num_decoder_processes: size of the decoder pool.
    """
    network.eval()
    with DecoderPool(max(1, min(num_decoder_processes, len(requests)))) as pool:
        yield from _extract(network, requests, pool, chunk_frames)


def _transform(network: VideoTransformerNetwork) -> Transform:
    device = next(network.parameters()).device
    return evaluation_transform(
        network.config.preprocessing, str(device), network.config.spec.views
    )


def _extract(
    network: VideoTransformerNetwork,
    requests: Sequence[DecodeRequest],
    pool: DecoderPool,
    chunk_frames: int,
) -> Iterator[Piece]:
    """Yield each request's features [T, V, D], in chunks that are filled across videos."""
    transform = _transform(network)
    backbone = Backbone(module=network.backbone, transform=transform, dtype=torch.float32)
    row_shape = (len(transform.views), network.config.temporal.feature_dim)
    rows = [
        RowRequest(name=request.path, request=request) for request in _as_trained(network, requests)
    ]
    lanes = [[number] for number in range(len(rows))]
    batcher = Batcher(backbone, chunk_frames, np.float32)
    for (video,) in extract_rows(rows, lanes, pool, batcher):
        features, frame_index, timestamps = video.arrays(row_shape, "float32")
        assert video.outcome is not None
        yield Piece(torch.from_numpy(features), timestamps, frame_index, video.outcome)


def _as_trained(
    network: VideoTransformerNetwork, requests: Sequence[DecodeRequest]
) -> list[DecodeRequest]:
    """Return requests for frames in the format of those that the network was trained on."""
    as_planes = network.config.spec.as_planes
    return [
        request._replace(as_planes=as_planes and request.decoder != "decord")
        for request in requests
    ]


def _decode(
    network: VideoTransformerNetwork, requests: Sequence[DecodeRequest], pool: DecoderPool
) -> Iterator[Piece]:
    """Yield each request's frames [T, V, 3, h, w], uint8."""
    transform = _transform(network)
    shape = (0, len(transform.views), *transform.preprocessing.input_size)
    empty = torch.empty(shape, dtype=torch.uint8, device=transform.device)
    # Of each request that is being decoded: frame index → time, views.
    decoded: defaultdict[int, dict[int, tuple[float, Tensor]]] = defaultdict(dict)
    pieces: dict[int, Piece] = {}
    num_yielded = 0
    for number, event in pool.decode(_as_trained(network, requests)):
        frames = decoded[number]
        if isinstance(event, Selected):
            frames.clear()
        elif isinstance(event, Chunk):
            views = transform.resize(transform.upload(event.data)[0], event.format)
            for index, time, frame in zip(event.frame_index, event.timestamps, views, strict=True):
                frames[index] = (time, frame)
        elif isinstance(event, Outcome):
            kept = sorted(frames) if event.status != "failed" else []
            pieces[number] = Piece(
                torch.stack([frames[index][1] for index in kept]) if kept else empty,
                np.array([frames[index][0] for index in kept], dtype=np.float64),
                np.array(kept, dtype=np.int64),
                event,
            )
            del decoded[number]
            while num_yielded in pieces:
                yield pieces.pop(num_yielded)
                num_yielded += 1


def whole_videos(
    rows: Sequence[VideoRow], sampling: Sampling, decoder: Decoder = "auto"
) -> list[VideoToClassify]:
    """Return each row as one clip of all its sampled frames."""
    return [
        VideoToClassify(
            row.video_id, [[DecodeRequest(row.path, row.start, row.end, sampling, decoder=decoder)]]
        )
        for row in rows
    ]


def clips_of_videos(
    rows: Sequence[VideoRow], videos: IndexedVideos, sampling: ClipSampling, num_clips: int
) -> list[VideoToClassify]:
    """Return each row as `num_clips` clips, evenly spaced."""
    found = []
    for row in rows:
        frame_index, times = videos.times(row.video_id)
        laid = [even_clip(times, sampling, number, num_clips) for number in range(num_clips)]
        clips = [videos.requests(row.video_id, frame_index[clip]) for clip in laid]
        found.append(VideoToClassify(row.video_id, clips, (float(times[0]), int(frame_index[0]))))
    return found


def score_videos(
    classify: VideoClassifier,
    videos: Sequence[VideoToClassify],
    accelerator: Accelerator,
    should_stop: Callable[[], bool] = never,
) -> Scored:
    """Return the logits of the videos of which at least one frame can be decoded.

    Raises:
        ManifestError: no video can be decoded.
        StoppedError: `should_stop` returned True.
    """
    results = classify_all(classify, videos, accelerator, should_stop)
    found = {row: one.logits for row, one in enumerate(results) if one.logits is not None}
    faults = tuple((one.name, one.fault) for one in results if one.fault)
    return Scored(torch.stack(list(found.values())), torch.tensor(list(found)), faults)


def classify_all(
    classify: VideoClassifier,
    videos: Sequence[VideoToClassify],
    accelerator: Accelerator,
    should_stop: Callable[[], bool] = never,
) -> list[Classified]:
    """Return the results of all videos, at least one of which has logits, in all processes.

    Raises:
        ManifestError: no video can be decoded.
        StoppedError: `should_stop` returned True.
    """
    if accelerator.num_processes == 1:  # several stop together, between videos
        classify = replace(classify, should_stop=should_stop)
    with accelerator.autocast():
        results = _classify_together(classify, videos, accelerator, should_stop)
    if all(one.logits is None for one in results):
        raise none_decoded(len(videos), results[0].fault)
    return results


def none_decoded(num_videos: int, first_fault: str) -> ManifestError:
    """Return the error for a set of videos of which none can be decoded."""
    return ManifestError(
        f"none of {num_videos} videos can be decoded, the first because of {first_fault}; see "
        "`vtnpipe manifest check` and `vtnpipe plan`"
    )


def _classify_together(
    classify: Callable[[Sequence[VideoToClassify]], Iterator[Classified]],
    videos: Sequence[VideoToClassify],
    accelerator: Accelerator,
    should_stop: Callable[[], bool],
) -> list[Classified]:
    """Classify videos in all processes together; each process returns all results, in order.

    Raises:
        StoppedError: `should_stop`, called after each video, returned True in some process.
    """
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    results: list[Classified] = []
    mine = classify(videos[rank::num_processes])
    for _ in range(0, len(videos), num_processes):
        found = all_of(accelerator, (next(mine, None), should_stop()))
        if any(stops for _, stops in found):
            raise StoppedError("stopped during evaluation")
        results += [one for one, _ in found if one is not None]
    return results

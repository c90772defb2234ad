"""Classifying videos from their files, in two of VTN's three modes of inference.

end-to-end  every frame through backbone and temporal model in one pass
chunked     the backbone in chunks of frames, the temporal model once over all of them
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...extract.backbone import Backbone, evaluation_transform
from ...extract.batching import Batch, Clock
from ...extract.choices import Decoder
from ...extract.decode.frames import Outcome
from ...extract.decode.pool import DecodingChildren
from ...extract.decode.protocol import Chunk, Decode, Restarted
from ...extract.decode.sampling import Sampling
from ...extract.gather import gather
from ...extract.transform import Transform
from ...manifests.errors import ManifestError, StoppedError
from ...manifests.manifest import VideoRow
from ...manifests.plan import PlannedRow
from ...temporal.batch import frame_positions
from ...temporal.clips import ClipSampling, generator_of, lay_clip
from ...temporal.distributed import Accelerator, all_of
from ...temporal.inference import Scored, never
from ..html.attention import SeenVideo
from ..models.network import VideoTransformerNetwork
from .clip_reader import IndexedVideos

Mode = Literal["end-to-end", "chunked"]


class Video(NamedTuple):
    """A video to classify.

    Attributes:
        name: its id or its path.
        clips: what is to be decoded for each of its clips, piece by piece; of one, all of it.
        first: time and rank of its first frame; None where the first that is decoded is that.
    """

    name: str
    clips: list[list[Decode]]
    first: tuple[float, int] | None = None


class Classified(NamedTuple):
    """A video's logits [C], the mean over its clips and views; None where nothing of it could be
    decoded. `outcome` is that of the first piece that was not whole.
    """

    name: str
    logits: Tensor | None
    outcome: Outcome

    @property
    def fault(self) -> str:
        """What could not be read, and why; empty where all could."""
        reason = f"{self.outcome.reason}: {self.outcome.message}"
        return "" if self.outcome.status == "ok" else reason


class Piece(NamedTuple):
    """What decoding a request gave: inputs [T, V, ...] of a network or its temporal model."""

    inputs: Tensor
    times: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    outcome: Outcome

    @property
    def seen(self) -> SeenVideo:
        """Its features, of a temporal model's inputs."""
        return SeenVideo(self.inputs.transpose(0, 1), self.times, self.frame_index)


@dataclass(kw_only=True)
class VideoClassifier:
    """A network with how it is to see videos.

    Attributes:
        network: that it puts into evaluation mode, wherever it is.
        mode: which of the two.
        chunk_frames: that go through the backbone at once; `chunked` only.
        num_children: that decode.
        shuffle_seed: give each clip's frames in a random order of this seed; None for their own.
    """

    network: VideoTransformerNetwork
    mode: Mode = "chunked"
    chunk_frames: int = 32
    num_children: int = 1
    shuffle_seed: int | None = None

    @torch.inference_mode()
    def __call__(self, videos: Sequence[Video]) -> Iterator[Classified]:
        """Yields each video's logits, in order."""
        self.network.eval()
        self._device = next(self.network.parameters()).device
        transform = _transform(self.network)
        requests = [piece for video in videos for clip in video.clips for piece in clip]
        owners = [
            (number, clip)
            for number, video in enumerate(videos)
            for clip, pieces in enumerate(video.clips)
            for _ in pieces
        ]
        count = max(1, min(self.num_children, len(requests)))
        with DecodingChildren(count) as children:
            if self.mode == "chunked":
                found = _features(self.network, requests, children, transform, self.chunk_frames)
            else:
                found = self._frames(requests, children, transform)
            pieces = zip(owners, found, strict=True)
            for number, of_video in groupby(pieces, lambda pair: pair[0][0]):
                clips = [
                    [piece for _, piece in of_clip]
                    for _, of_clip in groupby(of_video, lambda pair: pair[0][1])
                ]
                yield self._classify(videos[number], clips)

    def _frames(
        self, requests: Sequence[Decode], children: DecodingChildren, transform: Transform
    ) -> Iterator[Piece]:
        """Each request's frames [T, V, 3, h, w], uint8."""
        kept: list[Tensor] = []
        times: list[float] = []
        indices: list[int] = []
        shape = (0, len(transform.views), *transform.preprocessing.input_size)
        none = torch.empty(shape, dtype=torch.uint8, device=self._device)
        with closing(children.run(requests)) as events:
            for _, event in events:
                if isinstance(event, Chunk):
                    kept.append(transform.resize(transform.upload(event.images)))
                    times += event.timestamps
                    indices += event.frame_index
                if isinstance(event, Outcome):
                    if event.status == "failed":
                        kept, times, indices = [], [], []
                    order = np.argsort(indices, kind="stable")
                    yield Piece(
                        torch.cat([none, *kept])[torch.from_numpy(order)],
                        np.array(times, dtype=np.float64)[order],
                        np.array(indices, dtype=np.int64)[order],
                        event,
                    )
                if isinstance(event, Restarted | Outcome):
                    kept, times, indices = [], [], []

    def _classify(self, video: Video, clips: Sequence[Sequence[Piece]]) -> Classified:
        outcomes = [piece.outcome for clip in clips for piece in clip]
        outcome = next((one for one in outcomes if one.status != "ok"), outcomes[0])
        found = [self._logits(video, clip) for clip in clips if any(len(p.times) for p in clip)]
        logits = torch.stack(found).mean(0) if found else None
        return Classified(video.name, logits, outcome)

    def _logits(self, video: Video, clip: Sequence[Piece]) -> Tensor:
        """Logits [C] of one clip, the mean over its views."""
        inputs = torch.cat([piece.inputs for piece in clip])
        positions = frame_positions(
            np.concatenate([piece.times for piece in clip]),
            np.concatenate([piece.frame_index for piece in clip]),
            position_fps=self.network.config.temporal.position_fps,
            first=video.first,
        )
        if self.shuffle_seed is not None:
            order = generator_of(self.shuffle_seed, 0, video.name).permutation(len(inputs))
            inputs = inputs[torch.from_numpy(order)]
        places = torch.from_numpy(positions)[None].to(self._device)
        model = self.network.temporal if self.mode == "chunked" else self.network
        views = [view[None].to(self._device) for view in inputs.unbind(1)]
        logits = torch.stack([model(view, places)[0].cpu() for view in views])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).mean(0)  # of autocast's


@torch.inference_mode()
def video_features(
    network: VideoTransformerNetwork,
    requests: Sequence[Decode],
    *,
    chunk_frames: int = 32,
    num_children: int = 1,
) -> Iterator[Piece]:
    """Yields the features [T, V, D] of what each request gives, as `chunked` has them.

    Args:
        network: that it puts into evaluation mode, wherever it is.
        requests: what to decode.
        chunk_frames: that go through the backbone at once.
        num_children: that decode.
    """
    network.eval()
    transform = _transform(network)
    with DecodingChildren(max(1, min(num_children, len(requests)))) as children:
        yield from _features(network, requests, children, transform, chunk_frames)


def _transform(network: VideoTransformerNetwork) -> Transform:
    config, device = network.config, next(network.parameters()).device
    return evaluation_transform(config.preprocessing, str(device), config.identity["views"])


def _features(
    network: VideoTransformerNetwork,
    requests: Sequence[Decode],
    children: DecodingChildren,
    transform: Transform,
    chunk_frames: int,
) -> Iterator[Piece]:
    """Each request's frames as features [T, V, D], in chunks that are filled across videos."""
    backbone = Backbone(module=network.backbone, transform=transform, dtype=torch.float32)
    batch = Batch(backbone, chunk_frames, np.dtype(np.float32), Clock({}), lambda progress: None)
    rows = [PlannedRow(one.path, one.path, one.start, one.end, None, None) for one in requests]
    row_shape = (len(transform.views), network.config.temporal.feature_dim)
    with closing(children.run(requests)) as events:
        for video in gather(rows, events, batch):
            part = video.part(row_shape, "float32")
            assert video.outcome is not None
            features = torch.from_numpy(part.features)
            yield Piece(features, part.timestamps, part.frame_index, video.outcome)


def whole_videos(
    rows: Sequence[VideoRow], sampling: Sampling, decoder: Decoder = "auto"
) -> list[Video]:
    """All wanted frames of each row at once."""
    return [
        Video(row.video_id, [[Decode(row.path, row.start, row.end, sampling, decoder=decoder)]])
        for row in rows
    ]


def clips_of_videos(
    rows: Sequence[VideoRow], videos: IndexedVideos, sampling: ClipSampling, num_clips: int
) -> list[Video]:
    """So many clips, evenly over each row."""
    found = []
    for row in rows:
        ranks, times = videos.times(row.video_id)
        laid = [lay_clip(times, sampling, number, num_clips) for number in range(num_clips)]
        clips = [videos.requests(row.video_id, ranks[clip]) for clip in laid]
        found.append(Video(row.video_id, clips, (float(times[0]), int(ranks[0]))))
    return found


def score(
    classify: VideoClassifier,
    videos: Sequence[Video],
    accelerator: Accelerator,
    should_stop: Callable[[], bool] = never,
) -> Scored:
    """Logits of videos for scoring them; those of which nothing can be decoded are left out.

    Raises:
        ManifestError: nothing of any of them can be decoded.
        StoppedError: `should_stop` said so.
    """
    with accelerator.autocast():
        results = _classify_together(classify, videos, accelerator, should_stop)
    found = {row: one.logits for row, one in enumerate(results) if one.logits is not None}
    if not found:
        raise none_decoded(len(videos), results[0].fault)
    faults = tuple((one.name, one.fault) for one in results if one.fault)
    return Scored(torch.stack(list(found.values())), torch.tensor(list(found)), faults)


def none_decoded(num_videos: int, first_fault: str) -> ManifestError:
    """The error where none of some videos gives a frame."""
    return ManifestError(
        f"none of {num_videos} videos can be decoded, the first because of {first_fault}; see "
        "`vtnpipe manifest check` and `vtnpipe plan`"
    )


def _classify_together(
    classify: Callable[[Sequence[Video]], Iterator[Classified]],
    videos: Sequence[Video],
    accelerator: Accelerator,
    should_stop: Callable[[], bool],
) -> list[Classified]:
    """Classifies videos, by all processes together; each process gets all results, in order.

    Raises:
        StoppedError: `should_stop`, asked after each video, said so in one of the processes.
    """
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    results: list[Classified] = []
    mine = classify(videos[rank::num_processes])
    for _ in range(0, len(videos), num_processes):
        found = all_of(accelerator, (next(mine, None), should_stop()))
        if any(stops for _, stops in found):
            raise StoppedError("stopped while evaluating")
        results += [one for one, _ in found if one is not None]
    return results

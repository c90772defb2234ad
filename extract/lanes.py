"""Lanes: requests that are decoded side by side, and the features of their rows.

The frames of a lane fill batches of their own; see `batching.py`. A long video is cut into parts,
each in a lane of its own, once a decoder process has read its timeline.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..manifests.plan import Cut
from .batching import Batcher, ExtractedVideo, FrameBuffer, TaskProgress
from .decode.cuts import PREROLL_IF_DEAR
from .decode.frames import Outcome
from .decode.pool import DecoderPool, Requests
from .decode.protocol import Chunk, CutRequest, DecodeRequest, Restarted, Selected


@dataclass(frozen=True, kw_only=True)
class RowRequest:
    """Request for a row's frames.

    Attributes:
        name: name of the row, for messages.
        request: what to decode.
        num_frames: estimated number of frames.
        may_use_nvdec: whether a GPU's video engines may decode it.
    """

    name: str
    request: DecodeRequest
    num_frames: int = 0
    may_use_nvdec: bool = False


@dataclass(kw_only=True, eq=False)
class _Lane:
    """Rows, or one part of a row, that a decoder process decodes one after the other.

    Attributes:
        rows: numbers of the rows.
        requests: request of each row.
        num_expected: number of frames of each row, as far as it is known.
        question: asks for the parts of the only row, in place of decoding it.
        cuts: the answer.
        is_done: whether everything is decoded.
        videos: what each row has given since the lane began.
        frames: frames that do not fill a batch yet.
    """

    rows: list[int]
    requests: list[RowRequest]
    question: CutRequest | None = None
    cuts: list[Cut] = field(default_factory=list)
    is_done: bool = False
    num_expected: list[int] = field(init=False)
    videos: list[ExtractedVideo] = field(init=False)
    frames: FrameBuffer = field(init=False)

    def __post_init__(self) -> None:
        self.num_expected = [one.num_frames for one in self.requests]
        self.begin()

    def begin(self) -> None:
        """Discard what has been decoded."""
        self.videos = [ExtractedVideo(one.name, one.num_frames) for one in self.requests]
        self.frames = FrameBuffer()

    @property
    def group(self) -> "Requests[_Lane]":
        """The lane and its requests, as the decoder pool takes them."""
        if self.question is not None:
            return self, [self.question]
        return self, [one.request for one in self.requests]

    @property
    def is_complete(self) -> bool:
        """Whether everything is decoded, and all features are there."""
        return self.is_done and all(video.is_complete for video in self.videos)

    def parts(self) -> "list[_Lane]":
        """Return the lanes that decode the only row, one for each part of it."""
        (one,) = self.requests
        parts = [
            replace(one, request=one.request._replace(cut=cut), num_frames=cut.num_frames)
            for cut in self.cuts
        ]
        return [_Lane(rows=self.rows, requests=[part]) for part in parts or [one]]

    def use_nvdec(self) -> None:
        """Let a GPU's video engines decode it."""
        self.requests = [
            replace(one, request=one.request._replace(decoder="nvdec")) for one in self.requests
        ]


class _Order:
    """The lanes in the order of their rows, whatever order they are decoded in."""

    def __init__(self, lanes: Iterable[_Lane]) -> None:
        self.lanes = list(lanes)
        self._rest = FrameBuffer()
        self._num_joined = 0
        self._num_taken = 0
        self._row = 0
        self._parts: list[ExtractedVideo] = []

    def replace(self, lane: _Lane, parts: Sequence[_Lane]) -> None:
        """Put the parts of a lane in its place."""
        place = self.lanes.index(lane, self._num_joined)
        self.lanes[place : place + 1] = parts

    def join(self, batcher: Batcher) -> None:
        """Put the frames that are left at the end of lanes together, in order."""
        while self._num_joined < len(self.lanes) and self.lanes[self._num_joined].is_done:
            batcher.join(self._rest, self.lanes[self._num_joined].frames)
            self._num_joined += 1

    def complete_rows(self) -> Iterator[list[ExtractedVideo]]:
        """Yield the parts of each row that is complete and followed by another one."""
        while self._num_taken < self._num_joined and self.lanes[self._num_taken].is_complete:
            lane = self.lanes[self._num_taken]
            self._num_taken += 1
            for row, video in zip(lane.rows, lane.videos, strict=True):
                if row != self._row:
                    yield self._parts
                    self._row, self._parts = row, []
                self._parts.append(video)

    def remaining_rows(self, batcher: Batcher) -> Iterator[list[ExtractedVideo]]:
        """Compute what is left, and yield the remaining rows."""
        batcher.run(self._rest)
        batcher.finish()
        yield from self.complete_rows()
        yield self._parts


def extract_rows(
    requests: Sequence[RowRequest],
    lanes: Iterable[Sequence[int]],
    pool: DecoderPool,
    batcher: Batcher,
    *,
    part_frames: int | None = None,
    nvdec_share: float = 0.0,
    on_progress: Callable[[TaskProgress], None] = lambda progress: None,
) -> Iterator[list[ExtractedVideo]]:
    """Run the backbone over the frames of rows; yield the parts of each row, in order.

    Args:
        requests: request of each row; at least one.
        lanes: numbers of the rows in each lane; all together, every number once and in order.
        pool: decodes the lanes.
        batcher: computes the features; of no further use after an error.
        part_frames: frames of a part; a row of at least 1.5 times as many, alone in its lane, is
            cut into parts. None to leave all rows whole.
        nvdec_share: share of the frames that a GPU's video engines decode.
        on_progress: called with the frames that the estimates did not foresee, and with those that
            are void because a lane starts again.

    Raises:
        FeaturesError: a feature cannot be stored.
    """
    order = _Order(_lane(list(rows), requests, part_frames) for rows in lanes)
    _divide(order.lanes, nvdec_share)
    groups = deque(lane.group for lane in order.lanes)

    def expect(lane: _Lane, number: int, num_frames: int) -> None:
        on_progress(TaskProgress(num_unplanned_frames=num_frames - lane.num_expected[number]))
        lane.num_expected[number] = num_frames

    for lane, number, event in pool.run(groups):
        if isinstance(event, Outcome):
            stage = "nvdec" if event.decoder == "nvdec" else "decode"
            batcher.timer.add(stage, event.decode_seconds)
        if isinstance(event, Restarted):
            batcher.finish()
            on_progress(TaskProgress(num_frames=-sum(one.num_features for one in lane.videos)))
            lane.begin()
        elif isinstance(event, Selected):
            expect(lane, number, event.num_frames)
        elif isinstance(event, Chunk):
            video = lane.videos[number]
            video.add_times(event.frame_index, event.timestamps)
            batcher.add(lane.frames, video, batcher.prepare(event))
        elif isinstance(event, list):
            lane.cuts = event
        elif lane.question is not None:  # answered, or left without an answer by an error
            parts = lane.parts()
            _divide(parts, nvdec_share)
            expect(lane, 0, sum(one.num_expected[0] for one in parts))
            order.replace(lane, parts)
            groups.extendleft(one.group for one in reversed(parts))
        else:
            lane.videos[number].outcome = event
            if event.status == "failed":
                expect(lane, number, 0)
            lane.is_done = number == len(lane.requests) - 1
            order.join(batcher)
        yield from order.complete_rows()
    yield from order.remaining_rows(batcher)


def _divide(lanes: Sequence[_Lane], nvdec_share: float) -> None:
    """Let a GPU's video engines decode a share of the frames, spread evenly over the lanes.

    It depends on nothing but the lanes, so that the same plan gives the same lanes to the engines.
    """
    num_frames, num_nvdec = 0, 0
    for lane in lanes:
        if lane.question is not None or not all(one.may_use_nvdec for one in lane.requests):
            continue  # the parts that the answer gives are divided later
        length = sum(lane.num_expected)
        num_frames += length
        if num_nvdec < nvdec_share * num_frames:
            num_nvdec += length
            lane.use_nvdec()


def _lane(rows: list[int], requests: Sequence[RowRequest], part_frames: int | None) -> _Lane:
    """Return a lane that asks for the parts of a long row, or decodes its rows."""
    of_lane = [requests[row] for row in rows]
    one, question = of_lane[0], None
    num_parts = 1 if part_frames is None or len(rows) > 1 else round(one.num_frames / part_frames)
    if num_parts > 1 and one.request.cut is None:
        offsets = [one.num_frames * number // num_parts for number in range(num_parts)]
        path, start, end, sampling, *_ = one.request
        question = CutRequest(path, offsets, sampling, start, end, PREROLL_IF_DEAR)
    return _Lane(rows=rows, requests=of_lane, question=question)

"""From what decoding children say of videos to the features of each."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ..manifests.plan import PlannedRow
from .batching import Batch, GrowingVideo
from .decode.frames import Outcome
from .decode.protocol import Chunk, Event, Probed, Restarted


def gather(
    rows: Sequence[PlannedRow],
    events: Iterator[tuple[int, Event]],
    batch: Batch,
    on_expected: Callable[[int, int], None] = lambda number, num_frames: None,
) -> Iterator[GrowingVideo]:
    """Runs the frames that come through the backbone; yields each row once it is complete, in
    order.

    Args:
        rows: that were asked for.
        events: of them, from `DecodingChildren.run`.
        batch: that they go into.
        on_expected: is told a row's number and how many frames it will have.
    """
    waiting: deque[GrowingVideo] = deque()
    num_begun = 0
    for number, event in batch.clock.while_iterating("wait", events):
        if number == num_begun:
            waiting.append(GrowingVideo(rows[number], batch.place))
            num_begun += 1
        video = waiting[-1]
        if isinstance(event, Chunk):
            batch.add(video, event)
        elif isinstance(event, Restarted):
            waiting[-1] = GrowingVideo(video.row, batch.rewind(video.place))
        elif isinstance(event, Probed):
            on_expected(number, event.num_frames)
        elif isinstance(event, Outcome):
            video.outcome = event
            if event.status == "failed":
                batch.rewind(video.place)
                on_expected(number, 0)
        while waiting and waiting[0].is_complete:
            yield waiting.popleft()
    batch.finish()
    yield from waiting

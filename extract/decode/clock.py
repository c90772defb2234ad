"""Continued timestamps of streams whose clock jumps.

Recordings that were joined with `cat`, and encoders that restarted, set their clock back in the
middle of a file. As players do, the clock goes on behind such a jump: the first frame behind it
follows the last one before it, and frames keep their decoding order.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from typing import Any

# A clock of 33 bits begins again after 26.5 hours (ISO/IEC 13818-1, 2.4.3.7).
WRAPPING = {"mpegts": 2**33, "mpeg": 2**33}
MAX_GAP_SECONDS = 10.0  # of a clock that wraps; a longer gap is a jump forwards
LOOKAHEAD_PACKETS = 40  # codecs reorder up to 16 frames, which may be two fields each
SETTLED_PACKETS = 3  # packets in a row below an earlier decoding time: it was not one wrong time


class ClockContinuer:
    """Yields the packets of a stream with continued timestamps.

    Args:
        packets: packets in file order, from the file's beginning; their `pts` and `dts` are set.
        container: FFmpeg's name of the container.
        time_base: seconds per unit of the timestamps.

    Attributes:
        num_jumps: number of jumps so far.
    """

    def __init__(self, packets: Iterable[Any], container: str, time_base: Fraction) -> None:
        self.num_jumps = 0
        self._packets = iter(packets)
        self._ahead: deque[Any] = deque()
        self._period = WRAPPING.get(container, 0)
        self._max_gap = int(MAX_GAP_SECONDS / time_base) if self._period else None
        self._offset = 0  # of continued from unwrapped times
        self._shift = 0  # of continued from stored times, at the last packet
        self._raw_dts: int | None = None  # of the last packet, in units as stored
        self._dts: int | None = None  # the same, unwrapped
        self._max_pts: int | None = None  # continued
        self._interval = 0  # between the last two decoding times
        self._step = 0  # the same, or the duration of the frame that is presented last

    def __iter__(self) -> Iterator[Any]:
        while True:
            packet = self._ahead.popleft() if self._ahead else next(self._packets, None)
            if packet is None:
                return
            if not self._is_usual(packet):
                self._ahead.appendleft(packet)
                self._ahead.extend(islice(self._packets, LOOKAHEAD_PACKETS - len(self._ahead)))
                if self._is_jump():
                    self._continue_behind_jump()
                self._ahead.popleft()
            self._continue(packet)
            yield packet

    def _is_usual(self, packet: Any) -> bool:
        """Return whether the times of a packet simply follow those of the last one."""
        pts, dts = packet.pts, packet.dts
        if pts is None or dts is None or self._raw_dts is None or dts <= self._raw_dts:
            return False
        if self._max_gap is not None and max(dts - self._raw_dts, abs(pts - dts)) > self._max_gap:
            return False
        return not packet.is_keyframe or pts + self._shift > (self._max_pts or 0)

    def _continue(self, packet: Any) -> None:
        """Set the continued times of a packet."""
        pts, dts = self._unwrapped(packet)
        if pts is not None and self._is_far(pts, dts):
            pts = self._latest_until_jump(dts) + self._step
        if packet.dts is not None:
            if self._dts is not None and dts > self._dts:
                self._step = self._interval = dts - self._dts
            self._raw_dts, self._dts = packet.dts, dts
            self._shift = dts + self._offset - packet.dts
            if self._shift:
                packet.dts = dts + self._offset
        if pts is not None:
            pts += self._offset
            if packet.pts != pts:
                packet.pts = pts
            if self._max_pts is None or pts > self._max_pts:
                self._max_pts = pts
                self._step = packet.duration or self._step

    def _signed(self, difference: int) -> int:
        """Return a difference of two timestamps on a clock that may have wrapped."""
        if not self._period:
            return difference
        half = self._period // 2
        return (difference + half) % self._period - half

    def _unwrapped(self, packet: Any) -> tuple[int | None, int]:
        """Return presentation and decoding time on a clock that does not wrap."""
        base, raw_base = self._dts, self._raw_dts
        if base is None or raw_base is None:
            first = packet.dts if packet.dts is not None else packet.pts
            base = raw_base = first or 0
        dts = base if packet.dts is None else base + self._signed(packet.dts - raw_base)
        if packet.pts is None:
            return None, dts
        raw = raw_base if packet.dts is None else packet.dts
        return dts + self._signed(packet.pts - raw), dts

    def _is_far(self, pts: int, dts: int) -> bool:
        """Return whether a timestamp is from behind a jump, as FFmpeg's parsers may give it."""
        return self._max_gap is not None and abs(pts - dts) > self._max_gap

    def _latest_until_jump(self, dts: int) -> int:
        """Return the latest timestamp so far and of the next packets that are not behind a jump."""
        latest = dts if self._max_pts is None else self._max_pts - self._offset
        for packet in self._ahead:
            pts, following = self._unwrapped(packet)
            if following < dts or self._is_far(following, dts):
                break
            if pts is not None and not self._is_far(pts, following):
                latest = max(latest, pts)
        return latest

    def _is_jump(self) -> bool:
        """Return whether the clock jumps between the last packet and the next one."""
        packet = self._ahead[0]
        if packet.dts is None or self._dts is None:
            return False
        pts, dts = self._unwrapped(packet)
        if self._max_gap is not None and dts - self._dts > max(self._max_gap, 2 * self._interval):
            after = self._ahead[1].dts if len(self._ahead) > 1 else None
            is_sparse = after is not None and self._signed(after - packet.dts) > self._max_gap
            return not is_sparse  # as slides are
        if packet.is_keyframe:  # all frames before it are presented before it
            if dts < self._dts or pts is None or self._max_pts is None:
                return dts < self._dts
            is_repeated = dts == self._dts and pts + self._offset == self._max_pts
            return pts + self._offset <= self._max_pts and not is_repeated
        if dts > self._dts:
            return False
        following = [one for one in islice(self._ahead, SETTLED_PACKETS) if one.dts is not None]
        return len(following) == SETTLED_PACKETS and all(
            self._unwrapped(one)[1] < self._dts for one in following
        )

    def _continue_behind_jump(self) -> None:
        """Let the earliest of the next packets follow the latest of those before."""
        self.num_jumps += 1
        self._raw_dts = self._dts = self._ahead[0].dts
        earliest, last = None, self._dts
        for packet in self._ahead:
            pts, dts = self._unwrapped(packet)
            if dts < last:
                break  # the next jump
            last = dts
            if pts is None or self._is_far(pts, dts):
                continue
            if earliest is None or pts < earliest:
                earliest = pts
        if earliest is not None and self._max_pts is not None:
            self._offset = self._max_pts + max(self._step, 1) - earliest

"""Stand-in for a GPU's video engines: the CPU decodes in their process, wrongly if a file says so.

The stem of a file's name is the fault: `garbled`, `loses`, `doubles`, `shifts`, `fails`, `crashes`
`breaks` (an error of CUDA) or `stalls`; digits behind it do not count. Files of other names are
decoded well.
"""

import os
import time
from pathlib import Path
from typing import Any

from vtnpipe.extract import nvdec_process
from vtnpipe.extract.decode import frames as frames_module
from vtnpipe.extract.decode.frames import SoftwareFrames

NUMBER = 20  # of the frame with the fault

_decode = frames_module.decode
_num_frames: dict[str, int] = {}


def fault_of(path: str) -> str:
    """The fault that a file's name asks for."""
    return Path(path).stem.rstrip("0123456789")


class StandInFrames(SoftwareFrames):
    """Frames of which the first may differ from the CPU's."""

    def __init__(self, info: Any, *, as_planes: bool) -> None:
        super().__init__(info, as_planes=as_planes)
        _num_frames[info.path] = 0
        self._fault = fault_of(info.path)

    def equals(self, frame: Any, expected: Any) -> bool:
        if self._fault == "breaks":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().equals(frame, expected) and self._fault != "garbled"


def decode(stream: Any, packet: Any) -> tuple[list[Any], str]:
    """As `packets.decode`, with a fault at a frame."""
    path, fault = stream.container.name, fault_of(stream.container.name)
    found, error = _decode(stream, packet)
    given = []
    for frame in found:
        number = _num_frames[path] = _num_frames.get(path, 0) + 1
        if number == NUMBER and fault == "crashes":
            os._exit(9)
        if number == NUMBER and fault == "stalls":
            time.sleep(1000)
        if number == NUMBER and fault == "fails":
            return [], "engine error"
        if number == NUMBER and fault == "shifts":
            frame.pts += 1
        if number != NUMBER or fault != "loses":
            given += [frame] * (2 if number == NUMBER and fault == "doubles" else 1)
    return given, error


def main() -> None:
    """Run the process of the engines."""
    nvdec_process.SoftwareFrames = StandInFrames  # type: ignore[misc]
    frames_module.decode = decode
    nvdec_process.main()

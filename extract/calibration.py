"""How fast this machine is at it: a backbone on made-up frames, and the decoder on a real video."""

import time

import torch

from ..manifests.plan import Speed
from .backbone import Kinds
from .decode.pool import DecodingChildren
from .decode.protocol import Chunk, Decode
from .task import set_up, worker_backbone

MIN_SECONDS = 0.25
MIN_BATCHES = 2
NUM_DECODED_FRAMES = 256


def forward_rate(
    folder: str,
    device: str,
    num_threads: int,
    speed: Speed,
    is_compiled: bool,
) -> tuple[float, Kinds]:
    """Frames a second of the backbone alone, on made-up frames, as tasks run it.

    Args:
        folder: a feature folder.
        device: where to run.
        num_threads: on a CPU.
        speed: of which batches.
        is_compiled: whether tasks run it compiled.

    Returns:
        frames a second, 0 where the device has no memory for such a batch; and what the backbone is
        made of.
    """
    set_up(device, num_threads)
    backbone = worker_backbone(folder, device, speed, is_compiled=is_compiled)
    views = backbone.transform.views
    num_frames = max(1, speed.batch_size // len(views))
    shape = (num_frames, len(views), *backbone.transform.preprocessing.input_size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.to(backbone.transform.device)
    try:
        backbone.features(images)
    except torch.OutOfMemoryError:
        return 0.0, backbone.kinds
    start, num_batches = time.perf_counter(), 1
    started = backbone.start(images)
    while time.perf_counter() - start < MIN_SECONDS or num_batches < MIN_BATCHES:
        following = backbone.start(images)  # as tasks do: a GPU has always one more to go on with
        started.wait()
        started = following
        num_batches += 1
    started.wait()
    return num_batches * num_frames / (time.perf_counter() - start), backbone.kinds


def decode_rate(path: str) -> float | None:
    """Frames a second of one decoding child at the beginning of a video; None where it has too few
    to tell.
    """
    num_frames, start, last = 0, 0.0, 0.0
    with DecodingChildren(1) as children:
        for _, event in children.run([Decode(path)]):
            if isinstance(event, Chunk):
                last = time.perf_counter()
                if not start:
                    start = last  # opening it is not decoding
                else:
                    num_frames += len(event.frame_index)
                if num_frames >= NUM_DECODED_FRAMES:
                    break
    return num_frames / (last - start) if num_frames and last > start else None

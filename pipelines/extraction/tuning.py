"""What makes the work go fastest on this machine: measured before it, on all workers at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from ...manifests.errors import BackboneError
from ...manifests.feature_folder import FeatureFolder
from ...manifests.plan import Speed
from .scheduler import on_each_worker, on_one_worker
from .workers import Workers

if TYPE_CHECKING:
    from ...extract.backbone import Kinds
    from ...extract.decode.sampling import Sampling
    from .planning import LookedAt
    from .settings import ExtractSettings

BATCH_SIZES = {"cpu": (8, 16, 32), "cuda": (32, 64, 128, 256)}
COMPILED_BATCH_SIZE = {"cpu": 16, "cuda": 128}  # compiling for each size would take minutes
MAX_BATCH_SECONDS = 1.0  # a larger batch is tried where the last one took less
MIN_GAIN = 1.03
MIN_CONVOLUTIONS = 2  # a transformer's one, into patches, gains nothing
MAX_CHILDREN = 8
SPARE_DECODING = 1.25  # by which decoding is to be faster than the backbone

# Frames a second of one worker's backbone at a speed, all workers at it, and what it is made of.
Measure = Callable[[Speed], tuple[float, "Kinds"]]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was measured, and chosen.

    Attributes:
        speed: for tasks that are planned now.
        forward_fps: frames a second of one worker's backbone, with all workers at it.
        decode_fps: wanted frames a second of one decoding child; None where that is not known.
        num_children: decoding children of a worker.
        reasons: for the log.
    """

    speed: Speed
    forward_fps: float
    decode_fps: float | None
    num_children: int
    reasons: list[str]

    @property
    def worker_fps(self) -> float:
        """Frames a second that a worker can reach: the lower of its backbone and its children."""
        if self.decode_fps is None:
            return self.forward_fps
        return min(self.forward_fps, self.num_children * self.decode_fps)


class Choice(NamedTuple):
    """A choice, what it gives in frames a second of one worker, and why it was made."""

    speed: Speed
    fps: float
    reasons: list[str]


def choose_speed(measure: Measure, batch_sizes: Sequence[int], *, is_cpu: bool) -> Choice:
    """The smallest of the batch sizes that is about as fast as any; then channels last, and
    attention without its fused kernel, each if it pays.

    Args:
        measure: gives what a speed is worth.
        batch_sizes: to choose from, increasing.
        is_cpu: whether the backbone runs there; a GPU's fused attention is always the faster one.
    """
    rates: dict[int, float] = {}
    for size in batch_sizes:
        rates[size], kinds = measure(Speed(size))
        if rates[size] == 0 or size / rates[size] > MAX_BATCH_SECONDS:  # 0: no memory for it
            break
    size = min(size for size, rate in rates.items() if rate * MIN_GAIN >= max(rates.values()))
    others = ", ".join(f"{rate:,.1f} with {n}" for n, rate in rates.items() if n != size)
    words = f"batch size {size}: {rates[size]:,.1f} frames/s a worker"
    choice = Choice(Speed(size), rates[size], [words + (f" ({others})" if others else "")])
    if kinds.num_convolutions >= MIN_CONVOLUTIONS:
        variant = choice.speed._replace(channels_last=True)
        choice = _better(choice, variant, measure, "channels last", "channels first")
    if kinds.num_attentions and is_cpu:
        variant = choice.speed._replace(fused_attention=False)
        choice = _better(choice, variant, measure, "attention in steps", "attention in one kernel")
    return choice


def _better(choice: Choice, variant: Speed, measure: Measure, name: str, other: str) -> Choice:
    """The choice, or a variant of it that pays; with the reason."""
    fps, _ = measure(variant)
    pays = fps > MIN_GAIN * choice.fps
    words = f"{name if pays else other}: {fps:,.1f} frames/s {name}, {choice.fps:,.1f} {other}"
    reasons = [*choice.reasons, words]
    return Choice(variant, fps, reasons) if pays else choice._replace(reasons=reasons)


def choose_children(
    forward_fps: float, decode_fps: float | None, *, num_cpus: int, is_cpu: bool
) -> tuple[int, str]:
    """How many decoding children a worker has, and why.

    Args:
        forward_fps: frames a second of a worker's backbone.
        decode_fps: wanted frames a second of one child; None where that is not known.
        num_cpus: for a worker and its children.
        is_cpu: whether its backbone runs there, too.
    """
    most = max(1, min(MAX_CHILDREN, num_cpus - (0 if is_cpu else 1)))
    if decode_fps is None:
        number = 1 if is_cpu else most
        return number, f"decoding children a worker: {number}; no video is long enough to measure"
    number = min(most, ceil(SPARE_DECODING * forward_fps / decode_fps))
    return number, (
        f"decoding children a worker: {number}; one gives {decode_fps:,.0f} frames/s, "
        f"the backbone takes {forward_fps:,.0f}"
    )


def tune(
    client: Any,
    folder: FeatureFolder,
    workers: Workers,
    settings: "ExtractSettings",
    *,
    speed: Speed | None,
    sample: "LookedAt | None",
    sampling: "Sampling",
) -> Tuning:
    """Measures the backbone on all workers at a time, and the decoder on one video.

    Args:
        client: of the workers.
        folder: with extraction.json and the weights.
        workers: who computes.
        settings: where they leave a choice, it is made here.
        speed: of an earlier plan whose tasks are still to be done; None to choose.
        sample: a typical video.
        sampling: of its frames.

    Raises:
        BackboneError: a GPU has no memory for one batch.
    """
    from ...extract.calibration import decode_rate, forward_rate
    from .planning import wanted_frames

    path, device = str(folder.root.absolute()), workers.device
    run = partial(on_each_worker, client, forward_rate, path, device, workers.num_threads)

    def measure(candidate: Speed) -> tuple[float, "Kinds"]:
        found = run(candidate, settings.compile)
        return sum(fps for fps, _ in found) / len(found), found[0][1]

    kind, asked = device.split(":")[0], settings.batch_size
    if speed is not None:
        speed = speed._replace(batch_size=asked or speed.batch_size)
        fps, _ = measure(speed)
        words = f"batch size {speed.batch_size}, the plan's: {fps:,.1f} frames/s a worker"
        choice = Choice(speed, fps, [words])
    else:
        sizes = (COMPILED_BATCH_SIZE[kind],) if settings.compile else BATCH_SIZES[kind]
        sizes = sizes if asked is None else (asked,)
        choice = choose_speed(measure, sizes, is_cpu=kind == "cpu")
    if not choice.fps:
        raise BackboneError(
            f"--device {device}: has too little memory for {choice.speed.batch_size} frames at "
            "once; give a smaller --batch-size"
        )
    decode_fps = None if sample is None else on_one_worker(client, decode_rate, sample.row.path)
    if decode_fps is not None and sample is not None and sample.glance is not None:
        whole = sample.row._replace(start=None, end=None)
        decode_fps *= wanted_frames(whole, sample.glance, sampling) / sample.glance.num_frames
    num_children, why = choose_children(
        choice.fps,
        decode_fps,
        num_cpus=workers.num_cpus,
        is_cpu=device == "cpu",
    )
    if settings.decoding_children is not None:
        num_children = settings.decoding_children
        why = f"decoding children a worker: {num_children}; asked for"
    return Tuning(
        speed=choice.speed,
        forward_fps=choice.fps,
        decode_fps=decode_fps,
        num_children=num_children,
        reasons=[*choice.reasons, why],
    )

"""The settings of `vtnpipe extract`, and of what looks ahead at one: `plan`, `cluster script`."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from ...extract.choices import Decoder, Precision, Store, Views
from ...extract.decode.limits import Limits
from ...extract.decode.sampling import Sampling
from ...manifests.errors import Reason, SettingsError
from .. import common_settings
from ..dask_cluster.jobqueue import ClusterSettings
from ..settings import above, at_least, auto_or_at_least, setting
from .feature_spec import DEFAULT_BACKBONE
from .giving_up import is_failure_limit, is_time_budget

_PART = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")


def _is_part(value: str) -> str:
    """The rule that a value of --part breaks."""
    found = _PART.fullmatch(value)
    is_one = found is not None and int(found[1]) <= int(found[2])
    return "" if is_one else "it must be I/N, from 1/N to N/N"


def _is_retry(value: str) -> str:
    """The rule that a value of --retry breaks."""
    known = (*get_args(Reason), "all")
    is_fine = all(word in known for word in value.split(","))
    return "" if is_fine else f"it must be of {', '.join(known)}"


# What is not kept with the features: how this run is to end, and how much of the work it does.
_OF_RUN = ("part", "finish", "retry", "max_failures", "time_budget")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(ClusterSettings):
    """The settings of `vtnpipe extract`."""

    backbone: str | None = setting(
        None,
        help=f"A timm name, hf-hub: names included, or package.module:factory; by default the "
        f"model's that --weights names, else {DEFAULT_BACKBONE}.",
        metavar="NAME",
    )
    weights: str = setting(
        "pretrained",
        help="pretrained, none (random, always the same), a safetensors or PyTorch file, or a "
        "model folder, whose backbone and preprocessing are taken.",
        metavar="pretrained|none|FILE|MODEL",
    )
    precision: Precision = setting(
        "auto",
        help="Of the backbone. auto: the folder's; of a new one bfloat16 where CPU or GPU has it, "
        "else float16 on a GPU, float32 on a CPU.",
    )
    store: Store = setting("float16", help="Precision of the stored features.")
    device: str = common_settings.device("Where the backbone runs.")
    decoder: Decoder = common_settings.decoder()
    fps: float | None = setting(
        None,
        help="Take so many frames a second, those nearest to a steady rate; by default, "
        "every frame.",
        check=above(0),
    )
    every: int = setting(1, help="Take only every Nth frame.", check=at_least(1))
    views: Views = setting(
        "centre",
        help="Of each frame; flip adds the mirrored centre, three-crop is left, centre and right.",
    )
    pool: str | None = setting(
        None,
        help="How a timm model makes one vector of a frame, where it offers more than its own way: "
        "token, avg, max, avgmax, ...",
        metavar="NAME",
    )
    shard_frames: str = setting(
        "auto",
        help="Frames of a task, whose features become one shard; auto: one to two minutes of work.",
        check=auto_or_at_least(1),
        metavar="auto|N",
    )
    batch_size: int | None = setting(
        None,
        help="Images that go through the backbone at once; by default, measured.",
        check=at_least(1),
    )
    compile: bool = setting(False, help="Compile the backbone: minutes at first, faster then.")
    workers: int | None = setting(
        None,
        help="Worker processes, of this machine or of each batch job; by default one per core, or "
        "one per GPU.",
        check=at_least(1),
    )
    threads: int | None = setting(
        None,
        help="Threads of each worker on a CPU; by default the cores divided by the workers.",
        check=at_least(1),
    )
    decoding_children: int | None = setting(
        None,
        help="Processes of each worker that decode; by default, as many as keep the backbone busy.",
        check=at_least(1),
    )
    redo_changed: bool = setting(
        False, help="Extract videos again whose file or span has changed since."
    )
    retry: str | None = setting(
        None,
        help="Extract failed and partial videos again whose reason in failures.csv is one of these "
        "(separated by commas), or all of them.",
        check=_is_retry,
        metavar="REASONS|all",
    )
    max_failures: str = setting(
        "50%",
        help="Stop when more videos fail than this number, or than this share of the manifest's; a "
        "share counts from ten failures on.",
        check=is_failure_limit,
        metavar="N|P%",
    )
    time_budget: str | None = setting(
        None,
        help="Begin no task that would end later than so long after the start, and stop then: "
        "[[DAYS-]HOURS:]MINUTES:SECONDS.",
        check=is_time_budget,
        metavar="TIME",
    )
    stall_seconds: float = setting(
        Limits.stall_seconds,
        help="Give up a video that makes no progress for so long.",
        check=above(0),
    )
    max_megapixels: float = setting(
        Limits.max_pixels / 1e6,
        help="Largest frame; larger ones are refused.",
        check=at_least(0.001),
    )
    part: str | None = setting(
        None,
        help="Run only tasks I, I+N, I+2N, ...: for job arrays, whose jobs share the folder "
        "and need no scheduler. The last to end writes the report.",
        check=_is_part,
        metavar="I/N",
    )
    finish: bool = setting(
        False, help="Run nothing: write the report of parts, or say what they still have to do."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None and (self.finish or not self.is_here):
            raise SettingsError(
                f"--part {self.part} with --finish, --cluster or --scheduler: a part runs on its "
                "own machine; leave out one of the two"
            )
        if not self.is_here and self.device.startswith("cuda:"):
            raise SettingsError(
                f"--device {self.device} with workers elsewhere: each has a GPU of its own; give "
                "--device cuda"
            )
        Sampling(fps=self.fps, every=self.every)

    @property
    def parts(self) -> tuple[int, int]:
        """Which part this is, from 0, and of how many."""
        number, of = (self.part or "1/1").split("/")
        return int(number) - 1, int(of)

    @property
    def may_cut(self) -> bool:
        """Whether parts of a video may be decoded by themselves: decord begins at the beginning."""
        return self.decoder != "decord"

    @property
    def reasons_to_retry(self) -> frozenset[str]:
        """Those of `retry`."""
        words = frozenset((self.retry or "").split(",")) - {""}
        return frozenset(get_args(Reason)) if "all" in words else words

    @property
    def limits(self) -> Limits:
        """Of each decoding process."""
        max_pixels = int(self.max_megapixels * 1e6)
        return Limits(stall_seconds=self.stall_seconds, max_pixels=max_pixels)

    @property
    def record(self) -> dict[str, Any]:
        """What is kept with the features: not where they were made, nor a job's environment."""
        elsewhere = {field.name for field in fields(ClusterSettings)} | set(_OF_RUN)
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}

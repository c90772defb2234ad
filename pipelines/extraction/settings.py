"""Settings of `vtnpipe extract`, `plan` and `cluster script`."""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ...extract.create_backbone import DEFAULT_BACKBONE
from ...extract.decode.limits import Limits
from ...extract.decode.remote import SCHEMES, Remote
from ...extract.decode.sampling import Sampling
from ...extract.device import PrecisionChoice
from ...extract.views import Views
from ...manifests.errors import SettingsError
from ...manifests.failures import Reason
from ..dask_cluster.jobqueue import ClusterSettings
from ..settings import above, at_least, auto_or_at_least, setting
from .failure_limit import check_failure_limit

ExtractDecoder = Literal["auto", "nvdec", "pyav", "decord"]
FeatureDtype = Literal["float16", "float32"]
Compile = Literal["auto", "yes", "no"]

_PART = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")


def _check_part(value: str) -> str:
    """Return the rule that a value of --part breaks, or ""."""
    found = _PART.fullmatch(value)
    is_valid = found is not None and int(found[1]) <= int(found[2])
    return "" if is_valid else "must be I/N, from 1/N to N/N"


def _check_urls(value: str) -> str:
    """Return the rule that a value of --allow-remote breaks, or ""."""
    is_valid = all(
        url.partition("://")[0] in SCHEMES and url.partition("://")[2].strip("/")
        for url in value.split(",")
    )
    return "" if is_valid else f"must be URLs with a host or bucket, of {', '.join(SCHEMES)}"


def _check_retry(value: str) -> str:
    """Return the rule that a value of --retry breaks, or ""."""
    known = (*get_args(Reason), "all")
    is_valid = all(word in known for word in value.split(","))
    return "" if is_valid else f"must be of {', '.join(known)}"


# Options of one run, which are not recorded with the features.
_OF_RUN = ("part", "finish", "retry", "max_failures", "allow_remote", "cache", "cache_gib")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(ClusterSettings):
    """Settings of `vtnpipe extract`."""

    backbone: str | None = setting(
        None,
        help="timm name, hf-hub: name, or package.module:factory; by default that of the model in "
        f"--weights, else {DEFAULT_BACKBONE}.",
        metavar="NAME",
    )
    weights: str = setting(
        "pretrained",
        help="pretrained, none (random, always the same), a safetensors or PyTorch file, or a "
        "model folder, whose backbone and preprocessing are used.",
        metavar="pretrained|none|FILE|MODEL",
    )
    precision: PrecisionChoice = setting(
        "auto",
        help="Precision of the backbone. auto: the folder's; for a new folder bfloat16 if CPU or "
        "GPU supports it, else float16 on a GPU, float32 on a CPU.",
    )
    feature_dtype: FeatureDtype = setting("float16", help="Dtype of the stored features.")
    decoder: ExtractDecoder = setting(
        "auto",
        help="auto: PyAV, on a GPU also by its video engines (NVDEC), which share the work with "
        "the cores; nvdec: by them alone, but for files that they do not decode exactly; pyav: by "
        "the cores alone; decord for whole files that pass its checks.",
    )
    fps: float | None = setting(
        None,
        help="Frames per second to take, nearest to a steady rate; by default every frame.",
        check=above(0),
    )
    frame_stride: int = setting(1, help="Take every Nth frame.", check=at_least(1))
    image_fps: float | None = setting(
        None,
        help="Images per second of the folders and archives of images that have no rate in the "
        "manifest's column fps; by default 25.",
        check=above(0),
    )
    views: Views = setting(
        "center",
        help="Views of each frame; flip adds the mirrored center, three-crop is left, center, "
        "right.",
    )
    pool: str | None = setting(
        None,
        help="Pooling of a timm model, in place of its own: token, avg, max, avgmax, ...",
        metavar="NAME",
    )
    image_size: int | None = setting(
        None,
        help="Height and width of the backbone's input, in place of its own; pixels.",
        check=at_least(1),
    )
    shard_frames: str = setting(
        "auto",
        help="Frames per task, whose features become one shard.",
        check=auto_or_at_least(1),
        metavar="auto|N",
    )
    batch_size: int | None = setting(
        None,
        help="Images per backbone call; by default 16 on a CPU, 128 on a GPU.",
        check=at_least(1),
    )
    compile: Compile = setting(
        "auto",
        help="Compile the backbone: slow to start, faster afterwards. auto: on a GPU, if the work "
        "is long enough to earn the seconds back.",
    )
    threads: int | None = setting(
        None,
        help="Threads of each worker on a CPU; by default the cores divided by the workers.",
        check=at_least(1),
    )
    decoder_processes: int | None = setting(
        None,
        help="Decoder processes of each worker; by default 1 beside a CPU backbone, else one per "
        "core.",
        check=at_least(1),
    )
    redo_changed: bool = setting(False, help="Extract videos whose file or span has changed again.")
    retry: str | None = setting(
        None,
        help="Extract failed and partial videos again if their reason in failures.csv is one of "
        "these (separated by commas), or all of them.",
        check=_check_retry,
        metavar="REASONS|all",
    )
    max_failures: str = setting(
        "50%",
        help="Stop if more videos fail than this number, or than this share of the manifest's; "
        "a share applies only to ten failures or more.",
        check=check_failure_limit,
        metavar="N|P%",
    )
    stall_seconds: float = setting(
        Limits.stall_seconds,
        help="Seconds without progress after which a video is given up.",
        check=above(0),
    )
    max_megapixels: float = setting(
        Limits.max_pixels / 1e6,
        help="Largest frame; larger ones are refused.",
        check=at_least(0.001),
    )
    allow_remote: str | None = setting(
        None,
        help="URLs, separated by commas, below which videos may be fetched: s3://bucket/videos, "
        "gs://, az://, https://; by default, only local files are read.",
        check=_check_urls,
        metavar="URL[,URL]",
    )
    cache: str | None = setting(
        None,
        help="Folder for fetched videos, which all workers of a host share; by default in TMPDIR.",
        metavar="FOLDER",
    )
    cache_gib: float = setting(
        20.0, help="Size of that folder; what was used longest ago is removed.", check=above(0)
    )
    part: str | None = setting(
        None,
        help="Run only tasks I, I+N, I+2N, ...: for job arrays, whose jobs share the folder and "
        "need no scheduler. The last one to end writes the report.",
        check=_check_part,
        metavar="I/N",
    )
    finish: bool = setting(
        False, help="Run nothing: write the report of parts, or tell which tasks are missing."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None and (self.finish or not self.is_here):
            raise SettingsError(
                f"--part {self.part} with --finish, --cluster or --scheduler: a part runs on its "
                "own machine; leave out one of the two"
            )
        Sampling(fps=self.fps, frame_stride=self.frame_stride)

    @property
    def part_of(self) -> tuple[int, int]:
        """Index of this part, from 0, and number of parts."""
        number, count = (self.part or "1/1").split("/")
        return int(number) - 1, int(count)

    @property
    def may_cut(self) -> bool:
        """Whether videos may be cut into parts; decord decodes from a file's beginning."""
        return self.decoder != "decord"

    @property
    def reasons_to_retry(self) -> frozenset[str]:
        """Reasons of `retry`."""
        words = frozenset((self.retry or "").split(",")) - {""}
        return frozenset(get_args(Reason)) if "all" in words else words

    @property
    def limits(self) -> Limits:
        """Limits of each decoder process."""
        max_pixels = int(self.max_megapixels * 1e6)
        remote = Remote(
            allowed=tuple((self.allow_remote or "").split(",")) if self.allow_remote else (),
            cache=self.cache or "",
            max_bytes=int(self.cache_gib * 2**30),
        )
        return Limits(stall_seconds=self.stall_seconds, max_pixels=max_pixels, remote=remote)

    @property
    def record(self) -> dict[str, Any]:
        """Settings recorded with the features; not where they were computed, nor the jobs."""
        left_out = {field.name for field in fields(ClusterSettings)} - {"device", "workers"}
        left_out |= set(_OF_RUN)
        return {name: value for name, value in asdict(self).items() if name not in left_out}

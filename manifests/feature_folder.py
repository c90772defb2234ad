"""The feature folder: its paths, and extraction.json with the feature specification.

    extraction.json  backbone.safetensors  manifest.csv  plan/000.json ...  shards/*.h5
    failures.csv  report.json  report.html  jobs/ (logs of batch jobs)

All features of a folder share one `FeatureSpec`; everything else in extraction.json is a record of
how they were made.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .atomic import read_json, write_json
from .errors import FeaturesError

FORMAT, VERSION = "vtnpipe.extraction", 2
MAX_SHARD_BYTES = 256 * 2**20
REMEDY = "restore it from a copy, or extract into a new folder"
# Keys and values that version 1 (vtnpipe 0.1) wrote under other names.
RENAMED_KEYS = {"store": "feature_dtype", "every": "frame_stride"}
RENAMED_VIEWS = {"centre": "center"}
BEFORE_RESIZE, AFTER_RESIZE = "before-resize", "after-resize"  # values of `color_conversion`


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """Everything that determines a stored feature value.

    Attributes:
        backbone: timm name, `hf-hub:` name, or `package.module:factory`; name of the source of
            imported features.
        weights_digest: SHA-256 of the backbone's safetensors bytes; "" if not known yet, and for
            imported features.
        preprocessing: `extract.preprocessing.Preprocessing` as JSON; empty if not known yet, and
            for imported features.
        precision: dtype of the computation; "" if any will do.
        feature_dtype: dtype of the stored values; "" if any will do.
        fps: frames per second taken; None for every `frame_stride`-th frame.
        frame_stride: distance between the frames taken, in frames.
        views: name of each view of a frame.
        pool: timm pooling that replaces the backbone's own.
        image_size: height and width of the backbone's input in place of its own, in pixels.
        color_conversion: `before-resize` if frames are converted to RGB as a whole; `after-resize`
            if the planes of 4:2:0 frames are resized first, see `extract/planes.py`.
    """

    backbone: str
    weights_digest: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    precision: str = ""
    feature_dtype: str = ""
    fps: float | None = None
    frame_stride: int = 1
    views: tuple[str, ...] = ("center",)
    pool: str | None = None
    image_size: int | None = None
    color_conversion: str = BEFORE_RESIZE

    @property
    def as_planes(self) -> bool:
        """Whether frames are decoded to planes rather than RGB, where they can be."""
        return self.color_conversion == AFTER_RESIZE

    @property
    def is_imported(self) -> bool:
        """Whether a folder's features were imported, so that no backbone is known for them."""
        return not self.preprocessing

    @property
    def fingerprint(self) -> str:
        """Digest of the specification, 16 hexadecimal digits."""
        return digest_of(self.to_json())

    def differences(
        self, other: "FeatureSpec", *, ignore: frozenset[str] = frozenset()
    ) -> list[str]:
        """Return the fields in which `other` differs, in words; unknown fields match anything.

        Args:
            other: the specification to compare with, called "the folder" in the result.
            ignore: names of fields that may differ.
        """
        found = []
        for name in sorted({one.name for one in fields(self)} - ignore):
            mine, theirs = getattr(self, name), getattr(other, name)
            is_unknown = name in _MAY_BE_UNKNOWN and not (mine and theirs)
            if is_unknown or mine == theirs:
                continue
            found.append(
                "the weights (--weights) differ"
                if name == "weights_digest"
                else f"{name} is {mine!r} here and {theirs!r} in the folder"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the known fields as JSON values."""
        values = {**asdict(self), "views": list(self.views)}
        if not self.as_planes:
            del values["color_conversion"]
        return {name: value for name, value in values.items() if value or name not in _OMITTED}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FeatureSpec":
        """Create a specification from JSON values, those of version 1 included.

        Raises:
            ValueError, TypeError: the values do not form a specification.
        """
        renamed = {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
        views = renamed.pop("views", None) or ["center"]
        renamed["weights_digest"] = renamed.get("weights_digest") or ""
        return cls(**renamed, views=tuple(RENAMED_VIEWS.get(view, view) for view in views))


_MAY_BE_UNKNOWN = ("weights_digest", "preprocessing", "precision", "feature_dtype")
_OMITTED = (*_MAY_BE_UNKNOWN, "image_size")  # if they have no value


def digest_of(value: Any) -> str:
    """Return the digest of a JSON value, 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Contents of extraction.json.

    Attributes:
        spec: what determines the stored values.
        fingerprint: digest of the specification as stored; each shard carries it.
        row_shape: shape of a frame's features, (D,) or (V, D).
        weights: source of the backbone's weights: `pretrained`, `none`, or a digest of a file.
        records: settings and versions, for people.
    """

    spec: FeatureSpec
    fingerprint: str
    row_shape: tuple[int, ...]
    weights: str
    records: dict[str, Any] = field(default_factory=dict)

    @property
    def max_shard_frames(self) -> int:
        """Frames of a shard of at most `MAX_SHARD_BYTES` of features."""
        return max(1, MAX_SHARD_BYTES // self.bytes_per_frame)

    @property
    def bytes_per_frame(self) -> int:
        """Stored bytes of features per frame."""
        num_values = 1
        for length in self.row_shape:
            num_values *= length
        return num_values * (4 if self.spec.feature_dtype == "float32" else 2)


@dataclass(frozen=True)
class FeatureFolder:
    """The paths of a feature folder; creating the object touches no file."""

    root: Path

    @property
    def extraction(self) -> Path:
        """JSON with the feature specification; its presence makes a folder a feature folder."""
        return self.root / "extraction.json"

    @property
    def backbone(self) -> Path:
        """Weights of the backbone that computed the features."""
        return self.root / "backbone.safetensors"

    @property
    def manifest(self) -> Path:
        """Rows of the extracted videos, with their labels as last given."""
        return self.root / "manifest.csv"

    @property
    def plans(self) -> Path:
        """Folder of the plan files."""
        return self.root / "plan"

    @property
    def shards(self) -> Path:
        """Folder of the shards."""
        return self.root / "shards"

    @property
    def failures(self) -> Path:
        """CSV of the failed and partial videos."""
        return self.root / "failures.csv"

    @property
    def jobs(self) -> Path:
        """Folder of the batch jobs' logs."""
        return self.root / "jobs"

    @property
    def lock(self) -> Path:
        """Lock file of the run that writes; removed afterwards."""
        return self.root / ".lock"

    @property
    def planning(self) -> Path:
        """Lock file of the run that plans or reports, out of several that share the folder."""
        return self.root / ".planning"

    @property
    def report(self) -> Path:
        """JSON with counts and times of the last run."""
        return self.root / "report.json"


def read_extraction(folder: FeatureFolder) -> Extraction:
    """Read and check extraction.json.

    Raises:
        FeaturesError: the file is missing, damaged, or of another format or version.
    """
    path = folder.extraction
    try:
        exists = path.exists()
    except OSError as error:
        raise FeaturesError(f"cannot read {path} ({error}); {REMEDY}") from None
    if not exists:
        raise FeaturesError(
            f"{folder.root}: not a feature folder (no {path.name}); "
            "create one with `vtnpipe extract MANIFEST FEATURES`"
        )
    found = read_json(path, REMEDY)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FeaturesError(f"{path}: not written by vtnpipe (format is not {FORMAT!r}); {REMEDY}")
    if found.get("version") not in (1, VERSION):
        raise FeaturesError(
            f"{path}: has version {found.get('version')!r}, but this vtnpipe reads 1 and "
            f"{VERSION}; use the vtnpipe that wrote it, or extract into a new folder"
        )
    identity = found.get("identity" if found["version"] == 1 else "spec")
    try:
        if digest_of(identity) != found["fingerprint"]:
            raise FeaturesError(
                f"{path}: its fingerprint does not match its specification, so the file was "
                f"edited; {REMEDY}"
            )
        assert identity is not None
        return Extraction(
            spec=FeatureSpec.from_json(identity),
            fingerprint=found["fingerprint"],
            row_shape=tuple(found["row_shape"]),
            weights=found.get("weights", ""),
            records={key: found[key] for key in ("settings", "versions") if key in found},
        )
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
        raise FeaturesError(f"{path}: incomplete ({error!r}); {REMEDY}") from None


def write_extraction(folder: FeatureFolder, extraction: Extraction) -> None:
    """Write extraction.json atomically."""
    write_json(
        {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": extraction.fingerprint,
            "spec": extraction.spec.to_json(),
            "row_shape": list(extraction.row_shape),
            "weights": extraction.weights,
            **extraction.records,
        },
        folder.extraction,
    )


def is_new_folder(folder: FeatureFolder) -> bool:
    """Return whether a folder is empty, except for what a run killed at its start leaves."""
    if not folder.root.is_dir():
        return False
    left = {folder.backbone.name, folder.jobs.name}
    locks = (folder.lock.name, folder.planning.name)  # claims have longer names
    return all(
        path.name in left or path.name.startswith(locks) or path.suffix == ".tmp"
        for path in folder.root.iterdir()
    )


def check_spec(folder: FeatureFolder, spec: FeatureSpec) -> None:
    """Refuse to add features of another specification to a folder.

    Raises:
        FeaturesError: names each field that differs, with both values.
    """
    if differences := spec.differences(read_extraction(folder).spec):
        raise FeaturesError(
            f"{folder.root}: contains features with other settings: {'; '.join(differences)}; "
            "use the folder's settings, or another folder"
        )

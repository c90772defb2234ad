"""What decides every stored value of a feature folder, settled before anything is written: device,
precision, backbone, weights, preprocessing, sampling.
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ...extract.choices import VIEW_NAMES
from ...manifests.atomic import sha256_of
from ...manifests.errors import FeaturesError, SettingsError
from ...manifests.feature_folder import FeatureFolder, check_identity, read_extraction
from ...temporal.run_folder import RunFolder
from ..console import say
from ..dask_cluster.client import GetClient
from ..doctor import package_versions
from ..settings import option_name
from .scheduler import on_one_worker

if TYPE_CHECKING:
    from ...extract.backbone import BuiltBackbone
    from ...extract.decode.sampling import Sampling
    from .settings import ExtractSettings

DEFAULT_BACKBONE = "vit_base_patch16_224"
SAMPLING: dict[str, Any] = {"fps": None, "every": 1, "views": ["centre"], "pool": None}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What extraction.json says or will say, and the weights where the folder does not have them
    yet.
    """

    identity: dict[str, Any]
    records: dict[str, Any]
    device: str
    weights: bytes | None

    @property
    def sampling(self) -> "Sampling":
        """Which frames of a video are wanted."""
        from ...extract.decode.sampling import Sampling

        return Sampling.from_identity(self.identity)

    @property
    def bytes_per_frame(self) -> int:
        """Of stored features."""
        num_values = int(math.prod(self.records["row_shape"]))
        return num_values * (4 if self.identity["store"] == "float32" else 2)


def settle(
    folder: FeatureFolder,
    settings: "ExtractSettings",
    console: Console,
    get_client: GetClient | None = None,
) -> Extraction:
    """Settles everything that decides a stored value, without writing; compares it with the
    folder's.

    Args:
        folder: new, or with features.
        settings: as given.
        console: for the reasons.
        get_client: for what only a worker elsewhere can tell; by default, the workers are here.
    """
    from ...extract.backbone import build_backbone, evaluation_transform
    from ..models.model_folder import backbone_of_model

    stored = None
    if folder.extraction.exists():
        stored = read_extraction(folder)
    elif folder.root.exists() and not _may_begin_in(folder):
        raise FeaturesError(
            f"{folder.root}: is not a feature folder and not empty; give a new or an empty folder"
        )
    device, precision, reason = _computing(
        settings, stored["identity"]["precision"] if stored else None, get_client
    )
    say(console, f"device {device}; precision {precision}: {reason}")
    identity: dict[str, Any] = {
        "backbone": settings.backbone,
        "precision": precision,
        "store": settings.store,
        "fps": settings.fps,
        "every": settings.every,
        "views": list(VIEW_NAMES[settings.views]),
        "pool": settings.pool,
    }
    if stored:
        check_identity(folder, identity)  # before a backbone is built or downloaded for nothing
        if not folder.backbone.exists():
            raise FeaturesError(
                f"{folder.backbone}: missing, but its features were made with it; put it back, or "
                "extract into another folder"
            )
    model = _model_folder(settings)
    source = _weights_source(settings)
    built: BuiltBackbone | None = None
    if model is not None:
        built = backbone_of_model(model)
        source = f"model-sha256:{built.digest}"
    elif not stored or (settings.backbone, source) != (
        stored["identity"]["backbone"],
        stored["weights"],
    ):
        assert settings.backbone is not None
        built = build_backbone(settings.backbone, settings.weights, settings.pool)
    if built is None:
        assert stored is not None
        made = {key: stored["identity"][key] for key in ("weights_digest", "preprocessing")}
        row_shape, weights = stored["row_shape"], None
    else:
        made = {"weights_digest": built.digest, "preprocessing": built.preprocessing.to_json()}
        views = identity["views"]
        row_shape = [built.dim] if len(views) == 1 else [len(views), built.dim]
        evaluation_transform(built.preprocessing, "cpu", views)  # refuses views that it can't make
        weights = built.weights
    identity |= made
    records = {
        "row_shape": row_shape,
        "weights": source,
        "settings": settings.record,
        "versions": package_versions("vtnpipe", "torch", "timm", "decord2", "av", "h5py"),
    }
    if stored:
        check_identity(folder, identity)
    return Extraction(identity=identity, records=records, device=device, weights=weights)


def _computing(
    settings: "ExtractSettings", stored: str | None, get_client: GetClient | None
) -> tuple[str, str, str]:
    """Device and precision on the machines that compute, and the reason for the latter.

    Args:
        settings: as given.
        stored: precision of the folder, if it has one.
        get_client: for what only a worker elsewhere can tell.
    """
    from ...extract.device import resolve

    device, precision, reason = settings.device, str(settings.precision), "asked for"
    if settings.is_here or get_client is None:
        device, precision, reason = resolve(
            device, settings.precision, is_compiled=settings.compile
        )
    else:
        if device == "auto" and settings.scheduler is None:
            device = "cuda" if settings.job.gpus else "cpu"
        if device == "auto" or (precision == "auto" and stored is None):
            device, precision, reason = on_one_worker(
                get_client(settings.workers), resolve, device, settings.precision
            )
    if settings.precision == "auto" and stored is not None:
        return device, stored, "the folder's"
    return device, precision, reason


def with_model_settings(settings: "ExtractSettings", console: Console) -> "ExtractSettings":
    """The settings with what a model asks for, where `weights` names one: its backbone, and which
    frames and views of a video it takes.

    Raises:
        SettingsError: a setting says otherwise than the model.
    """
    from ..models.model_folder import read_config

    model = _model_folder(settings)
    if model is None:
        return replace(settings, backbone=settings.backbone or DEFAULT_BACKBONE)
    identity = read_config(RunFolder(model)).identity
    views = next(word for word, made in VIEW_NAMES.items() if list(made) == identity["views"])
    wanted = {key: identity[key] for key in ("backbone", "fps", "every", "pool")} | {"views": views}
    for key, value in wanted.items():
        default = next(field.default for field in fields(settings) if field.name == key)
        if getattr(settings, key) not in (default, value):
            raise SettingsError(
                f"{option_name(key)} {getattr(settings, key)} with --weights {model}: that model "
                f"has {value}; leave out one of the two"
            )
    say(
        console,
        f"backbone {wanted['backbone']}, its weights and its preprocessing: those of {model}",
    )
    return replace(settings, **wanted)


def _model_folder(settings: "ExtractSettings") -> Path | None:
    """The model folder that `weights` names, if it names one."""
    is_word = settings.weights in ("", "pretrained", "none")
    path = Path(settings.weights)
    return path if not is_word and (path / "config.json").is_file() else None


def _may_begin_in(folder: FeatureFolder) -> bool:
    """Whether a folder without extraction.json is empty but for what a killed run leaves at its
    very start.
    """
    if not folder.root.is_dir():
        return False
    left = {folder.backbone.name, folder.lock.name, folder.planning.name, folder.jobs.name}
    return all(path.name in left or path.suffix == ".tmp" for path in folder.root.iterdir())


def _weights_source(settings: "ExtractSettings") -> str:
    """`pretrained`, `none`, or `sha256:…` of the file; a file that can't be read is the backbone's
    to refuse.
    """
    path = Path(settings.weights)
    if settings.weights in ("pretrained", "none") or not path.is_file():
        return settings.weights
    try:
        return f"sha256:{sha256_of(path)}"
    except OSError:
        return settings.weights

"""The feature specification of an extraction, and the backbone's weights for a new folder."""

from dataclasses import dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from ...extract.backbone import evaluation_transform
from ...extract.create_backbone import DEFAULT_BACKBONE, BuiltBackbone, build_backbone
from ...extract.decode.nvdec import describe, read_engines
from ...extract.device import resolve
from ...extract.views import VIEW_NAMES
from ...extract.weights_file import check_weights
from ...manifests.atomic import sha256_of
from ...manifests.errors import FeaturesError, SettingsError
from ...manifests.feature_folder import (
    AFTER_RESIZE,
    BEFORE_RESIZE,
    Extraction,
    FeatureFolder,
    FeatureSpec,
    check_spec,
    is_new_folder,
    read_extraction,
)
from ...temporal.checkpoint import RunFolder
from ..console import say
from ..models.model_folder import backbone_of_model, read_config
from ..settings import option_name
from .settings import ExtractSettings

ASSUMED_ENGINES = 4  # of a GPU of a worker elsewhere; without them, the CPU does their share


@dataclass(frozen=True, kw_only=True)
class NewExtraction:
    """Contents of extraction.json, and the weights if the folder does not have them yet.

    Attributes:
        extraction: stored or to be stored.
        device: `cpu`, `cuda` or `cuda:N`.
        weights: bytes of backbone.safetensors; None if the folder has them.
        num_engines: number of video engines of a GPU that may decode; 0 for none.
    """

    extraction: Extraction
    device: str
    weights: bytes | None
    num_engines: int = 0


def resolve_spec(
    folder: FeatureFolder, settings: ExtractSettings, console: Console
) -> NewExtraction:
    """Determine everything that decides a stored value, and compare it with the folder's.

    Nothing is written.

    Args:
        folder: new, or with features.
        settings: settings, with those of a model in `weights` (`with_model_settings`).
        console: for device and precision, with the reason.

    Raises:
        FeaturesError: the folder contains something else, or features of other settings.
        SettingsError: device or precision is not supported, or not known here.
        BackboneError: the backbone cannot be created.
    """
    stored = None
    if folder.extraction.exists():
        stored = read_extraction(folder)
    elif folder.root.exists() and not is_new_folder(folder):
        raise FeaturesError(
            f"{folder.root}: is not a feature folder and not empty; give a new or an empty folder"
        )
    device, precision = _resolve_device(settings, stored, console)
    num_engines = _resolve_engines(settings, device, folder, stored, console)
    assert settings.backbone is not None
    spec = FeatureSpec(
        backbone=settings.backbone,
        precision=precision,
        feature_dtype=settings.feature_dtype,
        fps=settings.fps,
        frame_stride=settings.frame_stride,
        views=VIEW_NAMES[settings.views],
        pool=settings.pool,
        image_size=settings.image_size,
        color_conversion=BEFORE_RESIZE if stored is None else stored.spec.color_conversion,
    )
    if stored is not None:
        if stored.spec.is_imported:
            raise FeaturesError(
                f"{folder.root}: contains imported features, {stored.spec.backbone!r}; extract "
                "into another folder"
            )
        check_spec(folder, spec)  # before a backbone is built or downloaded in vain
        if not folder.backbone.exists():
            raise FeaturesError(
                f"{folder.backbone}: missing, but its features were computed with it; restore it, "
                "or extract into another folder"
            )
        source = _weights_source(settings)
        if _model_folder(settings) is None and source == stored.weights:
            return NewExtraction(
                extraction=stored, device=device, weights=None, num_engines=num_engines
            )
    built, source = _build(settings)
    if built.weights_taken:
        say(console, f"weights {settings.weights}: {built.weights_taken}")
    spec = replace(spec, weights_digest=built.digest, preprocessing=built.preprocessing.to_json())
    if stored is not None:
        check_spec(folder, spec)
        return NewExtraction(
            extraction=stored, device=device, weights=None, num_engines=num_engines
        )
    transform = evaluation_transform(built.preprocessing, "cpu", spec.views)
    if device != "cpu" and settings.decoder != "decord" and transform.planes is not None:
        spec = replace(spec, color_conversion=AFTER_RESIZE)
    elif settings.decoder == "nvdec":
        raise SettingsError(
            f"--decoder nvdec: the preprocessing of {settings.backbone} resizes images by "
            f"{built.preprocessing.interpolation!r}, which planes are not resized by; leave it out"
        )
    extraction = Extraction(
        spec=spec,
        fingerprint=spec.fingerprint,
        row_shape=(built.dim,) if len(spec.views) == 1 else (len(spec.views), built.dim),
        weights=source,
        records={
            "settings": settings.record,
            "versions": package_versions(),
        },
    )
    return NewExtraction(
        extraction=extraction, device=device, weights=built.weights, num_engines=num_engines
    )


def _resolve_device(
    settings: ExtractSettings, stored: Extraction | None, console: Console
) -> tuple[str, str]:
    """Return device and precision; those of workers elsewhere must be given.

    Raises:
        SettingsError: this machine does not support them, or does not know them.
    """
    device, precision, reason = settings.device, str(settings.precision), "as given"
    if stored is not None and precision == "auto":
        precision, reason = stored.spec.precision, "the folder's"
    if settings.is_here:
        choice: Any = precision
        device, precision, resolved = resolve(device, choice, is_compiled=settings.compile == "yes")
        reason = resolved if settings.precision == "auto" and stored is None else reason
    elif "auto" in (device, precision):
        option = "--device auto" if device == "auto" else "--precision auto"
        raise SettingsError(
            f"{option}: the workers are not on this machine, which plans for them; give --device "
            "cuda or cpu, and --precision bfloat16, float16 or float32"
        )
    say(console, f"device {device}; precision {precision}: {reason}")
    return device, precision


def _resolve_engines(
    settings: ExtractSettings,
    device: str,
    folder: FeatureFolder,
    stored: Extraction | None,
    console: Console,
) -> int:
    """Return the number of video engines of each GPU that decode; 0 for none.

    Raises:
        SettingsError: `--decoder` asks for what this machine or the folder does not allow.
    """
    is_wanted = settings.decoder == "nvdec"
    if stored is not None and stored.spec.as_planes and settings.decoder == "decord":
        raise SettingsError(
            f"--decoder decord: it decodes to RGB, but {folder.root} has features of planes that "
            "were converted after the resize; give --decoder auto, or another folder"
        )
    if device == "cpu" or settings.decoder not in ("auto", "nvdec"):
        if is_wanted:
            raise SettingsError("--decoder nvdec: needs a GPU; give --device cuda, or leave it out")
        return 0
    if stored is not None and not stored.spec.as_planes:
        if is_wanted:
            raise SettingsError(
                f"--decoder nvdec: {folder.root} has features of frames that were converted to RGB "
                "before the resize; leave it out, or extract into another folder"
            )
        return 0
    if not settings.is_here:
        return ASSUMED_ENGINES
    engines = read_engines(int(device.partition(":")[2] or 0))
    if is_wanted and not engines.num_engines:
        raise SettingsError(f"--decoder nvdec: {engines.obstacle}; or leave it out")
    say(console, f"GPU: {describe(engines)}")
    return engines.num_engines


def _build(settings: ExtractSettings) -> tuple[BuiltBackbone, str]:
    """Return the backbone, and the source of its weights."""
    assert settings.backbone is not None
    model = _model_folder(settings)
    if model is not None:
        built = backbone_of_model(model)
        return built, f"model-sha256:{built.digest}"
    built = build_backbone(settings.backbone, settings.weights, settings.pool, settings.image_size)
    return built, _weights_source(settings)


def with_model_settings(settings: ExtractSettings, console: Console) -> ExtractSettings:
    """Return the settings with backbone, sampling and views of the model that `weights` names.

    Raises:
        SettingsError: a setting contradicts the model.
        BackboneError: the weights are a path that does not exist.
    """
    check_weights(settings.weights)
    model = _model_folder(settings)
    if model is None:
        return replace(settings, backbone=settings.backbone or DEFAULT_BACKBONE)
    spec = read_config(RunFolder(model)).spec
    wanted: dict[str, Any] = {
        "backbone": spec.backbone,
        "fps": spec.fps,
        "frame_stride": spec.frame_stride,
        "pool": spec.pool,
        "image_size": spec.image_size,
        "views": next(word for word, names in VIEW_NAMES.items() if names == spec.views),
    }
    for key, value in wanted.items():
        default = next(field.default for field in fields(settings) if field.name == key)
        if getattr(settings, key) not in (default, value):
            raise SettingsError(
                f"{option_name(key)} {getattr(settings, key)} with --weights {model}: that model "
                f"has {value}; leave out one of the two"
            )
    say(console, f"backbone {spec.backbone}, weights and preprocessing: those of {model}")
    return replace(settings, **wanted)


def package_versions() -> dict[str, str | None]:
    """Return the versions of packages that affect features; None if one is not installed."""
    versions: dict[str, str | None] = {}
    for name in ("vtnpipe", "torch", "timm", "decord2", "av", "h5py"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def _model_folder(settings: ExtractSettings) -> Path | None:
    """Return the model folder that `weights` names, if it names one."""
    is_word = settings.weights in ("", "pretrained", "none")
    path = Path(settings.weights)
    return path if not is_word and (path / "config.json").is_file() else None


def _weights_source(settings: ExtractSettings) -> str:
    """Return `pretrained`, `none`, or `sha256:…` of the weights file."""
    path = Path(settings.weights)
    if settings.weights in ("pretrained", "none") or not path.is_file():
        return settings.weights
    try:
        return f"sha256:{sha256_of(path)}"
    except OSError:  # build_backbone reports it
        return settings.weights

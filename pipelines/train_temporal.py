"""`vtnpipe train-temporal`: stage two, from a feature folder to a run folder; the same command
resumes.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console

from ..manifests.errors import SettingsError
from ..manifests.files import remove_temporaries, write_json
from ..manifests.folder import fingerprint, locked
from ..manifests.videos import read_manifest
from ..temporal.choices import Encoder, Optimizer, Schedule
from .options import at_least, between, check_settings, setting
from .progress import say

if TYPE_CHECKING:
    from ..manifests.store import FeatureStore
    from ..temporal.checkpoint import RunFolder
    from ..temporal.fit import EpochReport, Recipe
    from ..temporal.model import TemporalConfig
    from ..temporal.presets import Preset
    from ..temporal.splits import UsableRows

OF_THE_PRESET = "By default, the preset's."


@dataclass(frozen=True, kw_only=True)
class TrainTemporalSettings:
    """The settings of `vtnpipe train-temporal`; where a default is None, the preset decides."""

    preset: str = setting(
        "auto",
        help="vit-b-vtn, vit-b-vtn-1layer, deit-b-vtn, deit-ti-vtn, r50-vtn, r101-vtn; auto: the "
        "one with the features' backbone, else vit-b-vtn's shape on the features' dimensions.",
        metavar="NAME",
    )
    encoder: Encoder = setting("longformer", help="mean: mean pooling, which sees no order.")
    layers: int | None = setting(None, help=OF_THE_PRESET, check=at_least(1))
    heads: int | None = setting(None, help=OF_THE_PRESET, check=at_least(1))
    window: int = setting(18, help="Of the local attention, in frames; even, half to each side.")
    intermediate: int | None = setting(
        None, help=f"Dimensions inside each layer. {OF_THE_PRESET}", check=at_least(1)
    )
    head_dim: int | None = setting(
        None, help=f"Dimensions inside the head. {OF_THE_PRESET}", check=at_least(1)
    )
    max_positions: int = setting(288, help="Rows of the position embedding.", check=at_least(3))
    positions: Literal["seconds", "frames"] = setting(
        "seconds", help="frames: a frame's position is its index, whatever its time."
    )
    position_fps: float = setting(25.0, help="Positions a second.", check=between(1e-3, 1e6))
    dropout: float = setting(0.1, help="In the encoder, attention included.", check=between(0, 1))
    head_dropout: float = setting(0.5, help="In the head.", check=between(0, 1))
    epochs: int = setting(25, help="Passes over the training split.", check=at_least(1))
    batch_size: int | None = setting(None, help=f"Clips a step. {OF_THE_PRESET}", check=at_least(1))
    optimizer: Optimizer = setting("sgd", help="SGD is the paper's.")
    lr: float = setting(1e-3, help="Learning rate at the start.", check=between(0, 1e30))
    momentum: float = setting(0.9, help="Of SGD.", check=between(0, 1))
    weight_decay: float = setting(0.0, help="Of either optimizer.", check=between(0, 1))
    schedule: Schedule | None = setting(
        None, help=f"steps: x0.1 at epoch 13 of 25, x0.01 at 24. {OF_THE_PRESET}"
    )
    clip_frames: int = setting(16, help="Frames of a training clip.", check=at_least(1))
    clip_seconds: float = setting(5.12, help="Its length.", check=between(0.01, 1e6))
    train_split: str = setting("train", help="The manifest's split to learn from.")
    val_split: str = setting("val", help="The split that decides which epoch is the best.")
    manifest: str | None = setting(
        None, help="Labels and splits; by default the features' own.", metavar="FILE"
    )
    drop_partial: bool = setting(False, help="Leave out videos with missing frames.")
    seed: int = setting(0, help="Of weights, clips and their order.", check=between(0, 2**31))
    device: str = setting("auto", help="Where to train.", metavar="auto|cpu|cuda|cuda:N")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """How a training ended: the line of its best epoch, from metrics.jsonl, and of its last."""

    best: dict[str, Any]
    last: dict[str, Any]


def train_temporal(
    features: str | Path,
    run: str | Path,
    settings: TrainTemporalSettings | None = None,
    *,
    console: Console | None = None,
) -> TrainReport:
    """Fits a temporal model on stored features; resumes what the run folder holds.

    Args:
        features: a feature folder.
        run: the run folder; made if it is not there.
        settings: by default, `TrainTemporalSettings()`.
        console: for progress; by default, nothing is printed.

    Raises:
        VtnpipeError: features, manifest or a setting breaks a rule; nothing has been written then.
    """
    import torch

    from ..extract.device import resolve_device
    from ..manifests.shards import open_features
    from ..temporal.checkpoint import RunFolder
    from ..temporal.dataset import ClipDataset, ClipSampling
    from ..temporal.fit import fit
    from ..temporal.model import TemporalClassifier
    from ..temporal.splits import class_indices, training_classes, usable_rows
    from .network import NetworkConfig, link_backbone, write_config

    settings = settings or TrainTemporalSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    store = open_features(features)
    rows = read_manifest(settings.manifest or store.folder.manifest)
    parts = [
        usable_rows(store, rows, split, drop_partial=settings.drop_partial)
        for split in (settings.train_split, settings.val_split)
    ]
    names = training_classes(rows, parts[0].rows, settings.train_split)
    labels = [class_indices(part.rows, names) for part in parts]
    config, recipe = _resolve(settings, store, len(names))
    sampling = ClipSampling(
        num_frames=settings.clip_frames, seconds=settings.clip_seconds, seed=settings.seed
    )
    train, val = (
        ClipDataset(store, part.rows, indices, position_fps=config.position_fps, sampling=drawn)
        for part, indices, drawn in zip(parts, labels, (sampling, None), strict=True)
    )
    files = RunFolder(Path(run))
    check_root(files)
    with torch.random.fork_rng(), locked(files):
        torch.manual_seed(settings.seed)
        model = TemporalClassifier(config)
        is_new = _begin(files, settings, recipe, _data_digest(store, parts, labels))
        if is_new:
            identity = store.extraction["identity"]
            write_config(
                files, NetworkConfig(identity=identity, temporal=config, class_names=names)
            )
        link_backbone(store.folder, files)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        say(
            console,
            f"{config.encoder}, {num_parameters / 1e6:.1f}M parameters, on {device}; "
            f"{len(train)} training and {len(val)} validation videos, {len(names)} classes; "
            f"{recipe.optimizer}, learning rate {recipe.lr:g} ({recipe.schedule}), "
            f"batches of {recipe.batch_size}",
            *(part.gaps for part in parts if part.gaps),
        )
        fit(
            *(model, train, val, names, recipe, files),
            device=device,
            on_epoch=lambda report: say(console, _line(report, recipe.epochs)),
        )
    return _report(files, console)


def _resolve(
    settings: TrainTemporalSettings, store: "FeatureStore", num_classes: int
) -> tuple["TemporalConfig", "Recipe"]:
    """The model's shape and the recipe: what is set, else the preset's."""
    from ..temporal.fit import Recipe
    from ..temporal.model import TemporalConfig

    chosen = _preset(settings, store)
    dim = store.row_shape[-1]

    def own_or(value: Any, of_preset: Any) -> Any:
        return of_preset if value is None else value

    config = TemporalConfig(
        feature_dim=dim,
        num_classes=num_classes,
        encoder=settings.encoder,
        num_layers=own_or(settings.layers, chosen.num_layers),
        num_heads=own_or(settings.heads, chosen.num_heads),
        attention_window=settings.window,
        intermediate_dim=own_or(settings.intermediate, chosen.intermediate_dim),
        head_dim=own_or(settings.head_dim, chosen.head_dim),
        max_positions=settings.max_positions,
        position_fps=settings.position_fps if settings.positions == "seconds" else None,
        dropout=settings.dropout,
        attention_dropout=settings.dropout,
        head_dropout=settings.head_dropout,
    )
    recipe = Recipe(
        epochs=settings.epochs,
        batch_size=own_or(settings.batch_size, chosen.batch_size),
        optimizer=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=own_or(settings.schedule, chosen.schedule),
        seed=settings.seed,
    )
    return config, recipe


def _preset(settings: TrainTemporalSettings, store: "FeatureStore") -> "Preset":
    from ..temporal.presets import preset, preset_for, preset_like

    dim = store.row_shape[-1]
    backbone = store.extraction["identity"]["backbone"]
    if settings.preset == "auto":
        return preset_for(backbone) or preset_like(dim)
    chosen = preset(settings.preset)
    if chosen.feature_dim != dim:
        raise SettingsError(
            f"--preset {settings.preset!r} is for features of {chosen.feature_dim} dimensions, "
            f"but those in {store.folder.root} ({backbone}) have {dim}; give --preset auto"
        )
    return chosen


def _data_digest(store: "FeatureStore", parts: list["UsableRows"], labels: list[list[int]]) -> str:
    """What the run learns from: features, videos and their classes, as 16 hexadecimal digits."""
    rows = [
        [
            (row.video_id, label, [e.crc32 for e in store.entries[row.video_id]])
            for row, label in pairs
        ]
        for pairs in (zip(p.rows, i, strict=True) for p, i in zip(parts, labels, strict=True))
    ]
    return fingerprint({"features": store.extraction["fingerprint"], "rows": rows})


def check_root(files: "RunFolder") -> None:
    """Refuses a folder that holds something else than a run.

    Raises:
        SettingsError: it does.
    """
    if files.settings.exists() or not files.root.exists():
        return
    if files.root.is_dir():
        kept = [p for p in files.root.iterdir() if p != files.lock and p.suffix != ".tmp"]
        if not kept:
            return
    raise SettingsError(f"{files.root}: not empty, and no run folder; give a new folder")


def _begin(
    files: "RunFolder", settings: TrainTemporalSettings, recipe: "Recipe", data_digest: str
) -> bool:
    """Notes what a new run is for, or checks that it is the one that the folder holds.

    Returns:
        whether nothing has been trained yet.
    """
    for folder in (files.root, files.checkpoints):
        remove_temporaries(folder)
    value = {**asdict(settings), **asdict(recipe), "data": data_digest}
    if files.settings.exists() and any(files.checkpoints.glob("*.pt")):
        stored = json.loads(files.settings.read_text(encoding="utf-8"))
        differences = [
            f"{key} is {value.get(key)!r} here and {stored.get(key)!r} there"
            for key in sorted({*value, *stored} - {"device"})
            if value.get(key) != stored.get(key)
        ]
        if differences:
            raise SettingsError(
                f"{files.root}: holds another run: {'; '.join(differences)} (data: which videos "
                "have which class); use its settings and data to resume it, or another folder"
            )
        return False
    write_json(value, files.settings)
    return True


def _line(report: "EpochReport", epochs: int) -> str:
    return (
        f"epoch {report.epoch:3d}/{epochs}  loss {report.train_loss:.4f}  val loss "
        f"{report.loss:.4f}  top-1 {report.top1:6.1%}  top-5 {report.top5:6.1%}  "
        f"{report.videos_per_second:,.0f} videos/s{'  best' if report.is_best else ''}"
    )


def _report(files: "RunFolder", console: Console) -> TrainReport:
    lines = [json.loads(line) for line in files.metrics.read_text(encoding="utf-8").splitlines()]
    best = [line for line in lines if line["is_best"]][-1]
    say(
        console,
        f"{files.root}: {len(lines)} epochs; best top-1 {best['top1']:.1%} (epoch "
        f"{best['epoch']}), "
        f"last {lines[-1]['top1']:.1%}",
    )
    return TrainReport(best=best, last=lines[-1])

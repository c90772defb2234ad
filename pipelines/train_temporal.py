"""`vtnpipe train-temporal`: stage two, from a feature folder to a run folder; the same command
resumes.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from ..temporal.choices import Preload
from ..temporal.run_folder import RunFolder
from . import common_settings
from .console import say
from .settings import at_least, check_unset, setting
from .training.runs import begin_run, check_root
from .training.settings import FitSettings

if TYPE_CHECKING:
    from ..manifests.feature_store import FeatureStore
    from ..temporal.distributed import Accelerator
    from ..temporal.feature_reader import FeatureReader
    from .training.session import TrainReport


@dataclass(frozen=True, kw_only=True)
class TrainTemporalSettings(FitSettings):
    """The settings of `vtnpipe train-temporal`."""

    train_on: Literal["clips", "videos"] = setting(
        "clips", help="videos: every frame of each, as in evaluation."
    )
    manifest: str | None = common_settings.labels_of_features()
    drop_partial: bool = common_settings.drop_partial()
    preload: Preload = setting(
        "auto",
        help="Where to copy the features first. auto: to the GPU, else to memory, where "
        "they take at "
        "most half of what is free; none: they are read from the shards.",
    )
    loaders: int = setting(
        0, help="Processes that read ahead, where features are not copied.", check=at_least(0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_on == "videos":
            clips = ("clip_frames", "clip_seconds", "time_jitter")
            check_unset(self, clips, "--train-on videos has no clips")


def train_temporal(
    features: str | Path,
    run: str | Path,
    settings: TrainTemporalSettings | None = None,
    *,
    console: Console | None = None,
) -> "TrainReport":
    """Fits a temporal model on stored features; resumes what the run folder holds.

    Under `torchrun` or `accelerate launch`, all processes fit one model together.

    Args:
        features: a feature folder.
        run: the run folder; made if it is not there.
        settings: by default, `TrainTemporalSettings()`.
        console: for progress; by default, nothing is printed.

    Raises:
        VtnpipeError: features, manifest or a setting breaks a rule; nothing has been written then.
        StoppedError: a signal asked for it; the same call resumes.
    """
    from ..extract.device import resolve_device
    from ..manifests.manifest import read_manifest
    from ..manifests.shards import open_features
    from ..temporal.checkpoint import save_weights
    from ..temporal.dataset import ClipDataset, EvenClips, RandomClips
    from ..temporal.inference import Scored, predict_logits
    from ..temporal.model import TemporalClassifier
    from ..temporal.splits import remedy_for_features
    from .models.model_folder import NetworkConfig, link_backbone, write_config
    from .training.data import describe_splits, read_splits
    from .training.fit_shape import choose_preset, shape
    from .training.session import clip_sampling, describe_fit, fitting, make_recipe, run_fit

    settings = settings or TrainTemporalSettings()
    device = resolve_device(settings.device)
    store = open_features(features)
    splits = read_splits(
        read_manifest(settings.manifest or store.folder.manifest),
        store.statuses,
        settings,
        what="features",
        remedy=remedy_for_features(store.folder),
        drop_partial=settings.drop_partial,
    )
    identity, dim = store.extraction["identity"], store.row_shape[-1]
    chosen = choose_preset(settings, identity["backbone"], dim)
    names = splits.class_names
    config = shape(settings, chosen, dim, splits.targets[0], len(names))
    recipe = make_recipe(settings, chosen)
    files = RunFolder(Path(run))
    check_root(files, "train-temporal")
    sampling = clip_sampling(settings)
    if settings.train_on == "videos":
        sampling = replace(sampling, num_frames=None)
    with fitting(settings, device, files, console) as session:
        accelerator = session.accelerator
        model = TemporalClassifier(config)
        if settings.gradient_checkpointing:
            model.use_gradient_checkpointing()
        if session.is_main:
            data = splits.digest(
                store.extraction["fingerprint"],
                lambda row: [entry.crc32 for entry in store.entries[row.video_id]],
            )
            if begin_run(
                files,
                settings,
                recipe,
                command="train-temporal",
                data=data,
                source=store.folder.root,
            ):
                network = NetworkConfig(identity=identity, temporal=config, class_names=names)
                write_config(files, network)
                files.backbone.unlink(missing_ok=True)  # of a run that failed at its start
            link_backbone(store.folder, files)
        accelerator.wait_for_everyone()
        video_ids = [row.video_id for row in splits.rows]
        reader, place = _open_reader(store, video_ids, settings, accelerator)
        num_loaders = settings.loaders if reader.table is None else 0
        train, validation = (
            ClipDataset(reader, part.video_ids, targets, clips, position_fps=config.position_fps)
            for part, targets, clips in (
                (splits.train, splits.targets[0], RandomClips(sampling, settings.seed)),
                (splits.validation, splits.targets[1], EvenClips()),
            )
        )
        what = describe_fit(model, config.encoder, recipe, accelerator)
        say(session.console, what, describe_splits(splits), place, *splits.gaps)
        return run_fit(
            session,
            model,
            config,
            recipe,
            splits,
            train,
            validate=lambda network, should_stop: Scored(
                predict_logits(
                    network,
                    validation,
                    batch_size=recipe.batch_size,
                    accelerator=accelerator,
                    num_loaders=num_loaders,
                    should_stop=should_stop,
                )
            ),
            save=lambda path: save_weights(model, path, prefix="temporal."),
            num_loaders=num_loaders,
        )


def _open_reader(
    store: "FeatureStore",
    video_ids: list[str],
    settings: TrainTemporalSettings,
    accelerator: "Accelerator",
) -> tuple["FeatureReader", str]:
    """The features of videos, where they are read fastest, and a line on where that is."""
    from ..temporal.feature_reader import FeatureReader, choose_place, num_table_bytes, preload

    device = accelerator.device
    place, why = choose_place(
        settings.preload,
        num_table_bytes(store, video_ids),
        "cpu" if device.type == "cpu" else str(device),
        num_processes=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
    )
    return FeatureReader(store) if place is None else preload(store, video_ids, place), why

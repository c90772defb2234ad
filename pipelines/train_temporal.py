"""`vtnpipe train-temporal`: stage two, from a feature folder to a run folder; resumes."""

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..extract.device import resolve_device
from ..manifests.errors import EXIT_OK
from ..manifests.feature_store import FeatureStore, open_features
from ..manifests.manifest import read_manifest
from ..temporal.checkpoint import RunFolder, save_weights
from ..temporal.clips import Windows
from ..temporal.dataset import ClipDataset, EvenClips, RandomClips
from ..temporal.distributed import Accelerator
from ..temporal.feature_reader import FeatureReader, choose_place, num_table_bytes, preload
from ..temporal.frame_labels import FrameLabels
from ..temporal.metrics import shown_names
from ..temporal.model import TemporalClassifier
from ..temporal.splits import remedy_for_features
from .console import say
from .models.model_folder import NetworkConfig, link_backbone, write_config
from .options import settings_options
from .training.data import describe_splits, read_splits
from .training.feature_setup import (
    Fitted,
    FrameValidator,
    Validator,
    baseline_metrics,
    choose_lengths,
    describe_shortcut,
    fit_to_training_split,
    say_baselines,
)
from .training.session import (
    TrainReport,
    begin_run,
    check_root,
    clip_sampling,
    describe_training,
    make_recipe,
    run_precision,
    run_training,
    training_session,
)
from .training.settings import TrainTemporalSettings
from .training.temporal_config import choose_preset, new_temporal_config


def train_temporal(
    features: str | Path,
    run: str | Path,
    settings: TrainTemporalSettings | None = None,
    *,
    console: Console | None = None,
) -> TrainReport:
    """Train a temporal model on stored features; resume what the run folder contains.

    Under `torchrun` or `accelerate launch`, all processes train one model together.

    Args:
        features: feature folder.
        run: run folder; created if missing.
        settings: by default `TrainTemporalSettings()`.
        console: for progress; by default nothing is printed.

    Raises:
        VtnpipeError: features, manifest or a setting is invalid; nothing has been written.
        StoppedError: a signal asked for it; the same call resumes.
    """
    settings = settings or TrainTemporalSettings()
    device = resolve_device(settings.device)
    store = open_features(features)
    splits = read_splits(
        read_manifest(settings.manifest or store.folder.manifest),
        store.statuses,
        settings,
        what="features",
        remedy=remedy_for_features(store.folder),
        times=lambda video_id: store.times(video_id)[1],
        drop_partial=settings.drop_partial,
    )
    dim, names = store.row_shape[-1], splits.class_names
    lengths = choose_lengths(settings, store, splits)
    preset = choose_preset(settings, store.spec.backbone, dim, len(splits.train.rows))
    config = new_temporal_config(
        settings,
        preset,
        dim,
        splits.targets[0],
        names,
        longest_seconds=lengths.longest_seconds,
        window_frames=lengths.longest_tokens if settings.segments else None,
    )
    files = RunFolder(Path(run))
    recipe = make_recipe(settings, preset, splits, run_precision(settings, files, device))
    check_root(files, "train-temporal")
    with training_session(settings, device, files, console) as session:
        accelerator = session.accelerator
        model = TemporalClassifier(config)  # raises before anything is written
        if settings.gradient_checkpointing:
            model.use_gradient_checkpointing()
        is_new = False
        if session.is_main:
            data = splits.digest(
                store.fingerprint,
                lambda row: [entry.crc32 for entry in store.entries[row.video_id]],
            )
            is_new = begin_run(
                files,
                settings,
                recipe,
                lengths,
                command="train-temporal",
                data=data,
                source=store.folder.root,
            )
            if is_new:
                fit_to_training_split(store, splits, settings, config).save(files.baselines)
        accelerator.wait_for_everyone()
        fitted = Fitted.load(files.baselines)
        fitted.initialize(model)
        config = model.config
        if session.is_main:
            if is_new:
                write_config(
                    files, NetworkConfig(spec=store.spec, temporal=config, class_names=names)
                )
                files.backbone.unlink(missing_ok=True)  # of a run that failed at its start
            link_backbone(store.folder, files)
        accelerator.wait_for_everyone()
        video_ids = [row.video_id for row in splits.rows]
        reader, place = _open_reader(store, video_ids, settings, accelerator)
        num_workers = settings.num_workers if reader.table is None else 0
        train, validation = (
            ClipDataset(reader, part.video_ids, targets, clips, position_fps=config.position_fps)
            for part, targets, clips in (
                (
                    splits.train,
                    splits.targets[0],
                    RandomClips(lengths.sampling(clip_sampling(settings)), settings.seed),
                ),
                (
                    splits.validation,
                    splits.targets[1],
                    Windows(num_frames=config.window_frames)
                    if config.is_per_frame
                    else EvenClips(),
                ),
            )
        )
        say(
            session.console,
            describe_training(model, config.encoder, recipe, accelerator),
            describe_splits(splits),
            lengths.describe(settings),
            *describe_shortcut(fitted),
            place,
            *splits.gaps,
        )
        validator: Validator | FrameValidator
        targets = splits.targets[1]
        if isinstance(targets, FrameLabels):
            validator = FrameValidator(config, validation, targets, names, accelerator, num_workers)
        else:
            validator = Validator(model, validation, targets, names, accelerator, num_workers)
        report = run_training(
            session,
            model,
            config,
            recipe,
            splits,
            train,
            validate=validator,
            save=lambda path: save_weights(model, path, prefix="temporal."),
            num_workers=num_workers,
            offsets=fitted.offsets,
        )
        if session.is_main and fitted.baselines is not None:
            assert not isinstance(targets, FrameLabels)
            scores = baseline_metrics(
                fitted.baselines, store, splits.validation.rows, targets, names, config
            )
            model_scores = {
                name: report.kept[name] for name in shown_names(config.task, config.num_classes)
            }
            say_baselines(session.console, model_scores, scores)
            if model.shortcut is not None:
                blend = float(model.shortcut.blend)
                nothing = "" if blend else ": the probe alone is better on the validation split"
                say(session.console, f"factor of the learned logits: {blend:g}{nothing}")
        return report


def _open_reader(
    store: FeatureStore,
    video_ids: list[str],
    settings: TrainTemporalSettings,
    accelerator: Accelerator,
) -> tuple[FeatureReader, str]:
    """Return a reader of the videos, from where reading is fastest, and a line about that."""
    device = accelerator.device
    place, why = choose_place(
        settings.preload,
        num_table_bytes(store, video_ids),
        "cpu" if device.type == "cpu" else str(device),
        num_processes=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
    )
    return FeatureReader(store) if place is None else preload(store, video_ids, place), why


@click.command("train-temporal")
@click.argument("features")
@click.argument("run")
@settings_options(TrainTemporalSettings)
def command(features: str, run: str, console: Console, **options: Any) -> int:
    """Train a temporal model on the stored FEATURES, in the run folder RUN.

    The default recipe is made for frozen features of 50 to 5,000 videos; --recipe paper is the
    authors'. The same command resumes.
    """
    train_temporal(features, run, TrainTemporalSettings(**options), console=console)
    return EXIT_OK

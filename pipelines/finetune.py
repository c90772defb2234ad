"""`vtnpipe finetune`: train backbone and temporal model together, on clips decoded on the fly."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from torch import Tensor, nn

from ..extract.augmentation import Augmentation, default_short_sides
from ..extract.cores import num_cpus_per_process
from ..extract.device import resolve_device
from ..extract.preprocessing import Preprocessing
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, SettingsError
from ..manifests.failures import Failure, write_failures
from ..manifests.manifest import read_manifest
from ..temporal.checkpoint import RunFolder
from ..temporal.dataset import ClipDataset, RandomClips
from ..temporal.distributed import Accelerator
from ..temporal.segment_metrics import frame_metrics
from ..temporal.splits import rows_of_split
from ..temporal.train import Validation
from .console import say, say_failures
from .inference.clip_reader import IndexedVideos, VideoClipReader, index_videos
from .inference.video_classifier import (
    VideoClassifier,
    VideoToClassify,
    classify_all,
    clips_of_videos,
    score_videos,
    whole_videos,
)
from .models.model_folder import save_network, write_config
from .options import settings_options
from .training.data import Splits, describe_splits, read_splits
from .training.finetune_settings import FinetuneSettings
from .training.initial_model import initial_model
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
from .training.temporal_config import choose_preset

SIDES = r"\b(left|right)\b"  # a class name with one of these words forbids mirroring
MAX_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """Result of a finetuning.

    Attributes:
        training: result of the training.
        failures: videos that could not be read completely at its start.
    """

    training: TrainReport
    failures: list[Failure]

    @property
    def exit_code(self) -> int:
        """1 if something could not be read."""
        is_complete = not self.failures and not self.training.lost
        return EXIT_OK if is_complete else EXIT_WITH_FAILURES


def finetune(
    manifest: str | Path,
    run: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    console: Console | None = None,
) -> FinetuneReport:
    """Train backbone and temporal model on a manifest's videos; resume what the folder contains.

    Under `torchrun` or `accelerate launch`, all processes train one model together.

    Args:
        manifest: CSV file with a training and a validation split.
        run: run folder; created if missing.
        settings: by default `FinetuneSettings()`.
        console: for progress; by default nothing is printed.

    Raises:
        VtnpipeError: manifest, model or a setting is invalid.
        StoppedError: a signal asked for it; the same call resumes.
    """
    settings = settings or FinetuneSettings()
    device = resolve_device(settings.device)
    all_rows = read_manifest(manifest)
    wanted = dict.fromkeys((settings.train_split, settings.val_split))
    rows = [row for split in wanted for row in rows_of_split(all_rows, split)]
    files = RunFolder(Path(run))
    check_root(files, "finetune", files.index, files.failures)
    with training_session(settings, device, files, console) as session:
        accelerator, console = session.accelerator, session.console
        initial = initial_model(settings)
        videos = IndexedVideos(
            rows={row.video_id: row for row in rows},
            index=index_videos(files.index, rows, console, is_writer=session.is_main),
            sampling=initial.sampling,
            decoder=settings.decoder,
        )
        failures = videos.failures()
        if session.is_main:
            write_failures(failures, files.failures)
        statuses = dict.fromkeys(videos.rows, "ok")
        statuses |= {one.video_id: one.status for one in failures}
        splits = read_splits(
            all_rows,
            statuses,
            settings,
            what="frames",
            remedy=f"see {files.failures}",
            times=lambda video_id: videos.times(video_id)[1],
            class_names=initial.class_names,
        )
        network = initial.create(splits)
        config = network.config
        preset = choose_preset(settings, config.spec.backbone, config.temporal.feature_dim)
        recipe = make_recipe(settings, preset, splits, run_precision(settings, files, device))
        network.unfreeze(settings.train_blocks)
        if settings.gradient_checkpointing:
            network.use_gradient_checkpointing()
        if session.is_main:
            data = splits.digest(
                config.spec.to_json(),
                lambda row: (row.start, row.end, *videos.state(row.video_id)),
            )
            if begin_run(files, settings, recipe, command="finetune", data=data, source=manifest):
                # Without the digest of the backbone's weights, which training changes.
                spec = replace(config.spec, weights_digest="")
                write_config(files, replace(config, spec=spec))
        accelerator.wait_for_everyone()
        augmentation = _augmentation(settings, config.preprocessing, splits.class_names)
        sampling = clip_sampling(settings)
        if config.temporal.is_per_frame:  # as dense as the frames of whole videos
            sampling = replace(sampling, spacing="consecutive")
        num_workers = settings.num_workers
        if num_workers is None:
            num_workers = num_cpus_per_process(MAX_WORKERS)
        train = ClipDataset(
            VideoClipReader(videos, config.preprocessing, augmentation),
            splits.train.video_ids,
            splits.targets[0],
            RandomClips(sampling, settings.seed),
            position_fps=config.temporal.position_fps,
        )
        validation_rows = splits.validation.rows
        if settings.val_clips:
            to_score = clips_of_videos(validation_rows, videos, sampling, settings.val_clips)
        else:
            to_score = whole_videos(validation_rows, initial.sampling, settings.decoder)
        classifier = VideoClassifier(
            network=network,
            chunk_frames=settings.chunk_frames,
            num_decoder_processes=max(1, num_workers),
        )
        what = f"{config.spec.backbone} and {config.temporal.encoder}, {initial.description}"
        say_failures(console, failures, files.failures)
        say(
            console,
            describe_training(network, what, recipe, accelerator),
            f"{describe_splits(splits)}; {_describe_clips(augmentation, settings)}",
            *splits.gaps,
        )
        report = run_training(
            session,
            network,
            config.temporal,
            recipe,
            splits,
            train,
            validate=partial(_validate, classifier, to_score, splits, accelerator),
            save=lambda path: save_network(network, network.backbone, path),
            num_workers=num_workers,
            lr_scales=network.lr_scales(settings.layer_decay),
        )
    return FinetuneReport(training=report, failures=failures)


def _validate(
    classifier: VideoClassifier,
    videos: list[VideoToClassify],
    splits: Splits,
    accelerator: Accelerator,
    network: nn.Module,
    should_stop: Callable[[], bool],
) -> Validation:
    """Score the validation split, with the classifier's own network."""
    config, targets = classifier.network.config, splits.targets[1]
    if isinstance(targets, Tensor):
        scored = score_videos(classifier, videos, accelerator, should_stop)
        return Validation.of(scored, targets, config.class_names, config.temporal)
    found = classify_all(classifier, videos, accelerator, should_stop)
    labels = targets.at([one.times for one in found])
    logits = [one.logits for one in found if one.logits is not None]
    metrics = frame_metrics(logits, labels, config.class_names, config.temporal)
    faults = [f"{one.name}: {one.fault}" for one in found if one.fault]
    return Validation(metrics, len(logits), faults)


def _augmentation(
    settings: FinetuneSettings, preprocessing: Preprocessing, class_names: list[str]
) -> Augmentation | None:
    """Return the augmentation of training clips; None for evaluation's preprocessing.

    Raises:
        SettingsError: frames would be smaller than their crop.
    """
    if settings.augment == "no":
        return None
    _, height, width = preprocessing.input_size
    least, most = default_short_sides((height, width))
    least, most = settings.short_side_min or least, settings.short_side_max or most
    if not max(height, width) <= least <= most:
        raise SettingsError(
            f"--short-side-min {least} with --short-side-max {most}: the first must be at most the "
            f"second, and at least {max(height, width)}, the backbone's input"
        )
    flip = settings.flip == "yes"
    if settings.flip == "auto":
        flip = not any(re.search(SIDES, name, re.IGNORECASE) for name in class_names)
    return Augmentation(
        size=(height, width),
        short_sides=(least, most),
        flip=flip,
        interpolation=preprocessing.interpolation,
    )


def _describe_clips(augmentation: Augmentation | None, settings: FinetuneSettings) -> str:
    """Return sampling and augmentation of training clips in words."""
    clips = f"clips of {settings.clip_frames} frames over {settings.clip_seconds:g} s"
    if settings.segments is not None:
        clips = f"clips of {settings.clip_frames} consecutive frames"
    if augmentation is None:
        return f"{clips}, without augmentation"
    least, most = augmentation.short_sides
    mirrored = "half of them mirrored" if augmentation.flip else "none mirrored"
    return f"{clips}, short side {least} to {most}, random crops, {mirrored}"


@click.command("finetune")
@click.argument("manifest")
@click.argument("run")
@settings_options(FinetuneSettings)
def command(manifest: str, run: str, console: Console, **options: Any) -> int:
    """Train backbone and temporal model together on the videos in MANIFEST, in the run folder RUN.

    Clips are decoded on the fly. The same command resumes. With --from RUN, the model keeps RUN's
    shape: --preset, --encoder, --layers and the like are for new models.
    """
    return finetune(manifest, run, FinetuneSettings(**options), console=console).exit_code

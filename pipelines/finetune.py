"""`vtnpipe finetune`: backbone and temporal model together, on clips decoded on the fly; the same
command resumes.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from ..extract.choices import Decoder
from ..extract.decode.sampling import Sampling
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, SettingsError
from ..manifests.manifest import VideoRow, read_manifest
from ..temporal.run_folder import RunFolder
from . import common_settings
from .console import say
from .extraction.failures import Failure, say_failures, write_failures
from .processors import num_cpus_of_process
from .settings import above, at_least, between, check_unset, setting
from .training.runs import begin_run, check_root
from .training.settings import FitSettings

if TYPE_CHECKING:
    from ..extract.augmentation import Augmentation
    from ..extract.preprocessing import Preprocessing
    from ..temporal.distributed import Accelerator
    from .inference.clip_reader import IndexedVideos
    from .training.session import TrainReport

OF_NONE = "With --from none"
NEW_BACKBONE = ("backbone", "weights", "pool", "fps", "every")  # only without a model to begin with
AUGMENTATION = ("short_side_min", "short_side_max", "flip")
SIDES = r"\b(left|right)\b"  # a class name with one of these words forbids mirroring
MAX_LOADERS = 8


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(FitSettings):
    """The settings of `vtnpipe finetune`."""

    from_: str = setting(
        "none",
        help="A stage-two run or a model whose backbone and temporal model it begins with; none: "
        "the backbone that --backbone names, and a new temporal model.",
        metavar="RUN|MODEL|none",
    )
    new_head: bool = setting(
        False, help="A new head for the manifest's classes, on the model's backbone and encoder."
    )
    backbone: str | None = setting(
        None,
        help=f"{OF_NONE}: a timm name, hf-hub: names included, or package.module:factory; by "
        "default the preset's, else vit_base_patch16_224.",
        metavar="NAME",
    )
    weights: str = setting(
        "pretrained",
        help=f"{OF_NONE}: pretrained, none (random, always the same), or a safetensors or PyTorch "
        "file.",
        metavar="pretrained|none|FILE",
    )
    pool: str | None = setting(
        None, help=f"{OF_NONE}: a timm model's pooling, other than its own.", metavar="NAME"
    )
    fps: float | None = setting(
        None,
        help=f"{OF_NONE}: so many frames a second, the nearest to a steady rate.",
        check=above(0),
    )
    every: int = setting(1, help=f"{OF_NONE}: only each so many frames.", check=at_least(1))
    train_blocks: int | None = setting(
        None,
        help="How many of the backbone's last blocks learn; by default, all of it.",
        check=at_least(0),
    )
    layer_decay: float = setting(
        1.0,
        help="The learning rate is multiplied by this for each layer further from the head.",
        check=between(1e-3, 1),
    )
    augment: Literal["yes", "no"] = setting(
        "yes", help="Random scales, crops and mirroring; no: evaluation's preprocessing."
    )
    short_side_min: int | None = setting(
        None,
        help="Smallest short side of a frame before its crop; by default 256 for crops of 224.",
        check=at_least(1),
    )
    short_side_max: int | None = setting(
        None,
        help="Largest short side of a frame before its crop; by default 320 for crops of 224.",
        check=at_least(1),
    )
    flip: Literal["auto", "yes", "no"] = setting(
        "auto", help="Mirror half of the clips; auto: unless a class name says left or right."
    )
    val_clips: int = setting(
        0,
        help="Validate on so many clips, evenly over each video; 0: every frame at once.",
        check=at_least(0),
    )
    chunk_frames: int = common_settings.chunk_frames(
        "Frames that go through the backbone at once in validation."
    )
    loaders: int | None = setting(
        None,
        help="Processes that decode ahead, in each process; by default as many as it has cores, at "
        "most 8.",
        check=at_least(0),
    )
    decoder: Decoder = common_settings.decoder("pyav: also for whole videos, in validation.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_ == "none" and self.new_head:
            raise SettingsError("--new-head with --from none: all is new; leave out one of the two")
        Sampling(fps=self.fps, every=self.every)
        if self.from_ != "none":
            check_unset(self, NEW_BACKBONE, f"the backbone is that of --from {self.from_}")
        if self.decoder == "decord":
            raise SettingsError(
                "--decoder decord: clips are decoded from the middle of files, which it can't do "
                "exactly; give auto or pyav"
            )
        if self.augment == "no":
            check_unset(self, AUGMENTATION, "--augment no leaves frames as evaluation has them")


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """How a finetuning ended.

    Attributes:
        training: the lines of the best and the last epoch.
        failures: videos that could not be read, or not all of which could, when it began.
    """

    training: "TrainReport"
    failures: list[Failure]

    @property
    def exit_code(self) -> int:
        """1 where something could not be read."""
        is_whole = not self.failures and not self.training.lost
        return EXIT_OK if is_whole else EXIT_WITH_FAILURES


def finetune(
    manifest: str | Path,
    run: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    console: Console | None = None,
) -> FinetuneReport:
    """Fits backbone and temporal model on a manifest's videos; resumes what the run folder holds.

    Under `torchrun` or `accelerate launch`, all processes fit one model together.

    Args:
        manifest: CSV file, with the splits to learn from and to validate on.
        run: the run folder; made if it is not there.
        settings: by default, `FinetuneSettings()`.
        console: for progress; by default, nothing is printed.

    Raises:
        VtnpipeError: manifest, model or a setting breaks a rule.
        StoppedError: a signal asked for it; the same call resumes.
    """
    from ..extract.device import resolve_device
    from ..temporal.dataset import ClipDataset, RandomClips
    from ..temporal.splits import rows_of_split
    from .inference.clip_reader import VideoReader
    from .inference.video_classifier import VideoClassifier, clips_of_videos, score, whole_videos
    from .models.model_folder import save_network, write_config
    from .training.data import describe_splits, read_splits
    from .training.fit_shape import choose_preset
    from .training.initial_model import start_network
    from .training.session import clip_sampling, describe_fit, fitting, make_recipe, run_fit

    settings = settings or FinetuneSettings()
    device = resolve_device(settings.device)
    wanted = (settings.train_split, settings.val_split)
    every_row = read_manifest(manifest)
    rows = [row for split in dict.fromkeys(wanted) for row in rows_of_split(every_row, split)]
    files = RunFolder(Path(run))
    check_root(files, "finetune", files.index, files.failures)
    with fitting(settings, device, files, console) as session:
        accelerator, console = session.accelerator, session.console
        start = start_network(settings)
        videos = _index(rows, files, start.sampling, settings.decoder, accelerator, console)
        failures = videos.failures()
        if session.is_main:
            write_failures(failures, files.failures)
        statuses = dict.fromkeys(videos.rows, "ok")
        statuses |= {one.video_id: one.status for one in failures}
        splits = read_splits(
            rows,
            statuses,
            settings,
            what="frames",
            remedy=f"see {files.failures}",
            class_names=start.class_names,
        )
        network = start.network(splits)
        config = network.config
        chosen = choose_preset(settings, config.identity["backbone"], config.temporal.feature_dim)
        recipe = make_recipe(settings, chosen)
        network.unfreeze(settings.train_blocks)
        if settings.gradient_checkpointing:
            network.use_gradient_checkpointing()
        if session.is_main:
            data = splits.digest(
                config.identity, lambda row: (row.start, row.end, *videos.state(row.video_id))
            )
            if begin_run(files, settings, recipe, command="finetune", data=data, source=manifest):
                identity = {**config.identity, "weights_digest": None}  # they are to change
                write_config(files, replace(config, identity=identity))
        accelerator.wait_for_everyone()
        augmentation = _augmentation(settings, config.preprocessing, splits.class_names)
        sampling = clip_sampling(settings)
        num_loaders = settings.loaders
        if num_loaders is None:
            num_loaders = num_cpus_of_process(MAX_LOADERS)
        train = ClipDataset(
            VideoReader(videos, config.preprocessing, augmentation),
            splits.train.video_ids,
            splits.targets[0],
            RandomClips(sampling, settings.seed),
            position_fps=config.temporal.position_fps,
        )
        held_out = splits.validation.rows
        if settings.val_clips:
            seen = clips_of_videos(held_out, videos, sampling, settings.val_clips)
        else:
            seen = whole_videos(held_out, start.sampling, settings.decoder)
        classifier = VideoClassifier(
            network=network,
            chunk_frames=settings.chunk_frames,
            num_children=max(1, num_loaders),
        )
        what = f"{config.identity['backbone']} and {config.temporal.encoder}, {start.words}"
        say_failures(console, failures, files.failures)
        say(
            console,
            describe_fit(network, what, recipe, accelerator),
            f"{describe_splits(splits)}; {_words(augmentation, settings)}",
            *splits.gaps,
        )
        report = run_fit(
            session,
            network,
            config.temporal,
            recipe,
            splits,
            train,
            validate=lambda _, should_stop: score(classifier, seen, accelerator, should_stop),
            save=lambda path: save_network(network, network.backbone, path),
            num_loaders=num_loaders,
            lr_scales=network.lr_scales(settings.layer_decay),
        )
    return FinetuneReport(training=report, failures=failures)


def _index(
    rows: list[VideoRow],
    files: RunFolder,
    sampling: "Sampling",
    decoder: Decoder,
    accelerator: "Accelerator",
    console: Console,
) -> "IndexedVideos":
    """The rows with their files' timelines, which the first process makes."""
    from .inference.clip_reader import IndexedVideos, index_videos

    index = index_videos(files.index, rows, console, is_maker=accelerator.is_main_process)
    by_id = {row.video_id: row for row in rows}
    return IndexedVideos(rows=by_id, index=index, sampling=sampling, decoder=decoder)


def _augmentation(
    settings: FinetuneSettings, preprocessing: "Preprocessing", class_names: list[str]
) -> "Augmentation | None":
    """What is done to training clips; None for evaluation's preprocessing.

    Raises:
        SettingsError: frames would be smaller than their crop.
    """
    from ..extract.augmentation import Augmentation, default_short_sides

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


def _words(augmentation: "Augmentation | None", settings: FinetuneSettings) -> str:
    """What is done to training clips."""
    clips = f"clips of {settings.clip_frames} frames over {settings.clip_seconds:g} s"
    if augmentation is None:
        return f"{clips}, without augmentation"
    least, most = augmentation.short_sides
    mirrored = "half of them mirrored" if augmentation.flip else "none mirrored"
    return f"{clips}, short side {least} to {most}, random crops, {mirrored}"

"""`vtnpipe evaluate`: a model's figures on a split, from stored features or from the videos."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from rich.console import Console

from ..extract.choices import Decoder
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, SettingsError
from ..temporal.choices import Precision
from ..temporal.run_folder import RunFolder
from . import common_settings
from .console import say, say_some
from .inference.figures import figures_text
from .inference.predictions import Predictions, write_predictions
from .settings import at_least, check_settings, check_unset, setting

if TYPE_CHECKING:
    from ..temporal.clips import ClipSampling
    from ..temporal.metrics import Counts, Metrics
    from .inference.scoring import ScoredSplit
    from .models.model_folder import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The settings of `vtnpipe evaluate`."""

    split: str = setting("val", help="Which of the manifest's splits to score.")
    manifest: str | None = common_settings.labels_of_features()
    drop_partial: bool = common_settings.drop_partial()
    shuffle_frames: bool = setting(
        False, help="Put each video's frames in a random order: what does the order tell the model?"
    )
    seed: int = common_settings.seed("Of that order, and of the intervals' draws.")
    clips: int = setting(
        0,
        help="Mean of the logits of so many clips, evenly over each video; 0: every frame at once.",
        check=at_least(0),
    )
    clip_frames: int = common_settings.clip_frames("Frames of such a clip.")
    clip_seconds: float = common_settings.clip_seconds()
    bootstrap: int = setting(
        1000, help="Resamples for the 95% intervals; 0: none.", check=at_least(0)
    )
    precision: Precision = setting(
        "float32", help="Precision of the computation; weights stay float32."
    )
    batch_size: int = setting(
        16, help="Videos or clips at once, from a feature folder.", check=at_least(1)
    )
    mode: Literal["auto", "features", "chunked", "end-to-end"] = setting(
        "auto",
        help="auto: features of a feature folder, chunked for a manifest; end-to-end holds all "
        "frames of a video in memory at once.",
    )
    chunk_frames: int = common_settings.chunk_frames()
    decoder: Decoder = common_settings.decoder()
    device: str = common_settings.device()

    def __post_init__(self) -> None:
        check_settings(self)
        if not self.clips:
            check_unset(self, ["clip_frames", "clip_seconds"], "without --clips, all is seen")
        elif self.decoder == "decord":
            raise SettingsError(
                "--decoder decord with --clips: it can't begin in the middle of a file exactly; "
                "give auto or pyav"
            )
        if self.mode == "end-to-end":
            check_unset(self, ["chunk_frames"], "--mode end-to-end has no chunks")

    @property
    def sampling(self) -> "ClipSampling":
        """Of clips; of whole videos without."""
        from ..temporal.clips import WHOLE, ClipSampling

        if not self.clips:
            return WHOLE
        return ClipSampling(num_frames=self.clip_frames, seconds=self.clip_seconds)

    @property
    def shuffle_seed(self) -> int | None:
        """Of the order of frames; None for their own."""
        return self.seed if self.shuffle_frames else None


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """Figures, and of how many videos; also in MODEL/predictions/SPLIT.json."""

    metrics: "Metrics"
    intervals: dict[str, tuple[float, float]]  # 95%, by the figure's name
    counts: "Counts"

    @property
    def figures(self) -> dict[str, float | None]:
        """The task's figures by name, the most important first."""
        return {name: getattr(self.metrics, name) for name in self.metrics.figures}

    @property
    def exit_code(self) -> int:
        """1 where videos of the split are missing or partial."""
        has_gaps = self.counts.missing + self.counts.partial > 0
        return EXIT_WITH_FAILURES if has_gaps else EXIT_OK


def evaluate(
    model: str | Path,
    source: str | Path,
    settings: EvaluateSettings | None = None,
    *,
    console: Console | None = None,
) -> EvaluateReport:
    """Scores a model on a split's videos: every frame at once, or the mean over clips.

    Logits of several views are averaged. Writes MODEL/predictions/SPLIT.csv (a line a video),
    SPLIT.npz (video_ids, logits, targets, classes) and SPLIT.json (the figures), where SPLIT is
    followed by +10clips or +shuffled. Under `torchrun`, all processes share the work.

    Args:
        model: a model or run folder.
        source: a feature folder, made with the model's backbone; or a manifest.
        settings: by default, `EvaluateSettings()`.
        console: for the figures; by default, nothing is printed.

    Raises:
        VtnpipeError: model, source or a setting breaks a rule.
    """
    settings = settings or EvaluateSettings()
    found = evaluated(model, source, settings)
    if found.is_main:
        name = predictions_name(settings)
        _print(found.report, found.scored.faults, settings, name, console or Console(quiet=True))
        write_predictions(
            found.folder, name, found.predictions, found.scored.usable.rows, found.config
        )
    return found.report


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation found, before any of it is written.

    Attributes:
        report: the figures.
        predictions: what they are of.
        scored: the rows, and what could not be decoded.
        config: of the model.
        folder: for predictions.
        is_main: whether this process is the one of several that writes.
    """

    report: EvaluateReport
    predictions: Predictions
    scored: "ScoredSplit"
    config: "NetworkConfig"
    folder: Path
    is_main: bool


def evaluated(model: str | Path, source: str | Path, settings: EvaluateSettings) -> Evaluated:
    """Scores a model on a split's videos and writes nothing; for the arguments see `evaluate`."""
    from ..extract.device import resolve_device
    from ..temporal.bootstrap import intervals
    from ..temporal.distributed import accelerated
    from ..temporal.metrics import Counts, task_metrics
    from .inference.scoring import score_features, score_videos
    from .models.model_folder import model_digest, read_config

    device = resolve_device(settings.device)
    files = RunFolder(Path(model))
    config = read_config(files)
    if not Path(source).exists():
        raise SettingsError(f"{source}: is not there; give a feature folder or a manifest")
    is_manifest = Path(source).is_file()
    if is_manifest and (settings.mode == "features" or settings.manifest is not None):
        raise SettingsError(
            f"{source}: is a manifest, whose videos are decoded; leave out --mode features and "
            "--manifest, or give a feature folder"
        )
    if not is_manifest and settings.mode in ("chunked", "end-to-end"):
        raise SettingsError(
            f"--mode {settings.mode}: {source} is no manifest, whose videos could be decoded; "
            "leave it out, or give one"
        )
    if is_manifest:
        check_unset(settings, ["batch_size"], f"{source} is a manifest, whose videos are decoded")
    else:
        check_unset(settings, ["chunk_frames", "decoder"], f"{source} is a feature folder")
    with accelerated(device, settings.precision) as accelerator:
        score = score_videos if is_manifest else score_features
        scored = score(files, config, source, settings, accelerator)
        is_main = accelerator.is_main_process
    usable, logits, targets = scored.usable, scored.logits, scored.targets
    report = EvaluateReport(
        metrics=task_metrics(logits, targets, config.class_names, config.temporal),
        intervals=intervals(
            logits, targets, config.temporal, num_resamples=settings.bootstrap, seed=settings.seed
        ),
        counts=Counts(
            expected=usable.num_expected,
            scored=len(usable.rows),
            missing=usable.num_missing,
            partial=usable.num_partial,
            dropped=usable.num_dropped,
        ),
    )
    record = {
        "settings": asdict(settings),
        "model": model_digest(files),
        "source": scored.source,
        "faults": scored.faults,
        "classes": config.class_names,
        **asdict(report),
    }
    return Evaluated(
        report=report,
        predictions=Predictions(
            video_ids=[row.video_id for row in usable.rows],
            logits=logits,
            targets=targets,
            record=record,
        ),
        scored=scored,
        config=config,
        folder=files.predictions,
        is_main=is_main,
    )


def predictions_name(settings: EvaluateSettings) -> str:
    """Of the files that are written: a split's name never becomes a path."""
    name = quote(settings.split, safe="") or "all"
    name += f"+{settings.clips}clips" if settings.clips else ""
    return name + ("+shuffled" if settings.shuffle_frames else "")


def _print(
    report: EvaluateReport,
    faults: Sequence[str],
    settings: EvaluateSettings,
    name: str,
    console: Console,
) -> None:
    file = f"predictions/{name}.json"
    say_some(console, [f"lost {fault}" for fault in faults], f" videos in {file}")
    lines = list(_class_lines(report.metrics))
    say(console, *lines[:1])
    say_some(console, lines[1:], f" classes in {file}")
    clips = f", {settings.clips} clips a video" if settings.clips else ""
    shuffled = ", frames shuffled" if settings.shuffle_frames else ""
    figures = figures_text(report.figures, intervals=report.intervals)
    say(console, f"split {settings.split}{clips}{shuffled}: {figures}")
    counts = report.counts
    dropped = f", {counts.dropped} left out as partial" if counts.dropped else ""
    loud = "" if report.exit_code == EXIT_OK else "  <- not all of the split"
    say(
        console,
        f"videos: {counts.expected} expected, {counts.scored} scored, {counts.missing} missing, "
        f"{counts.partial} partial{dropped}{loud}",
    )


def _class_lines(metrics: "Metrics") -> Iterator[str]:
    """A table of the classes: each one's figure, and what it was taken for."""
    per_class: dict[str, float | None] = getattr(metrics, "per_class", {})
    confusion: list[list[int]] = getattr(metrics, "confusion", [])
    classes = list(per_class)
    if classes:
        width = max(12, *map(len, classes))
        figure = "accuracy  predicted as (videos)" if confusion else "average precision"
        yield f"{'class'.ljust(width)}  {figure}"
    for index, one in enumerate(classes):
        value = per_class[one]
        share = "       –" if value is None else f"{value:8.1%}"
        counts = zip(confusion[index] if confusion else (), classes, strict=False)
        found = ", ".join(f"{name} {n}" for n, name in sorted(counts, reverse=True)[:4] if n)
        yield f"{one.ljust(width)}  {share}  {found}".rstrip()

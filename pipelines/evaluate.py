"""`vtnpipe evaluate`: metrics of a model on a split, from stored features or from the videos."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from ..extract.device import resolve_device
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, SettingsError, counted
from ..manifests.groups import BY_FILE, group_of
from ..manifests.manifest import VideoRow
from ..manifests.segments import read_segments
from ..manifests.tabular import Tabular
from ..temporal.checkpoint import RunFolder
from ..temporal.config import TaskType
from ..temporal.distributed import accelerated
from ..temporal.intervals import (
    Comparison,
    compare,
    confidence_intervals,
    resampled_intervals,
)
from ..temporal.metrics import Counts, FrameMetrics, Metrics, shown_names, task_metrics
from ..temporal.segment_metrics import FrameCounts
from .console import metric_text, metrics_text, say, say_some
from .inference.evaluation import (
    EvaluateSettings,
    ScoredSplit,
    score_feature_split,
    score_video_split,
    weights_file,
)
from .inference.frame_evaluation import (
    ScoredFrames,
    background_of,
    score_feature_frames,
    score_video_frames,
)
from .inference.predictions import Predictions, read_predictions, write_predictions
from .inference.segmentation import FramePredictions, write_frame_predictions
from .models.model_folder import NetworkConfig, model_digest, read_config
from .options import settings_options
from .settings import check_unset
from .training.feature_setup import say_baselines
from .training.session import read_settings


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(Tabular):
    """Metrics of a split, also stored in MODEL/predictions/SPLIT.json; a table of them.

    Attributes:
        task: task of the model.
        metrics: metrics of the task.
        intervals: 95% confidence intervals by the metric's name.
        baselines: metrics of each baseline of the run by its name; empty for videos.
        chosen_on: what the run chose on this split, so that its metrics are optimistic.
        counts: numbers of expected, scored, missing, partial and dropped videos.
    """

    task: TaskType
    metrics: Metrics
    intervals: dict[str, tuple[float, float]]
    baselines: dict[str, Metrics]
    chosen_on: tuple[str, ...]
    counts: Counts

    @property
    def values(self) -> dict[str, float | None]:
        """Metrics worth showing, by name, the most important first."""
        num_classes = len(getattr(self.metrics, "per_class", ()))
        names = shown_names(self.task, num_classes)
        return {name: self.metrics[name] for name in names}

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield each metric worth showing, with its interval and the baselines' values."""
        for name, value in self.values.items():
            low, high = self.intervals.get(name, (None, None))
            baselines = {one: metrics[name] for one, metrics in self.baselines.items()}
            yield {"metric": name, "value": value, "low": low, "high": high, **baselines}

    def to_json(self) -> dict[str, Any]:
        """Return all values by name."""
        baselines = {name: metrics.to_json() for name, metrics in self.baselines.items()}
        return asdict(self) | {"metrics": self.metrics.to_json(), "baselines": baselines}

    @property
    def exit_code(self) -> int:
        """1 if videos of the split are missing or partial."""
        has_gaps = self.counts.missing + self.counts.partial > 0
        return EXIT_WITH_FAILURES if has_gaps else EXIT_OK


def evaluate(
    model: str | Path,
    source: str | Path,
    settings: EvaluateSettings | None = None,
    *,
    console: Console | None = None,
) -> EvaluateReport:
    """Score a model on a split's videos: every frame at once, or the mean over clips.

    Logits of several views are averaged. Writes MODEL/predictions/SPLIT.csv (one line per video),
    SPLIT.npz (video_ids, logits, targets, classes) and SPLIT.json (the metrics), where SPLIT is
    followed by +10clips or +shuffled. Under `torchrun`, all processes share the work.

    Args:
        model: model or run folder.
        source: feature folder, made with the model's backbone; or a manifest.
        settings: by default `EvaluateSettings()`.
        console: for the metrics; by default nothing is printed.

    Raises:
        VtnpipeError: model, source or a setting is invalid.
    """
    settings = settings or EvaluateSettings()
    console = console or Console(quiet=True)
    files = RunFolder(Path(model))
    device = resolve_device(settings.device)
    config = read_config(files)
    is_manifest = _check_source(source, settings)
    if not is_manifest and settings.manifest is None:
        settings = _with_manifest_of_run(files, Path(source), settings, console)
    if config.temporal.is_per_frame:
        return _evaluate_frames(files, config, source, settings, device, console)
    names = ["segments", "decoding", "transition_cost", "min_seconds"]
    check_unset(settings, names, f"{model} is for {config.temporal.task}, not for frames")
    with accelerated(device, settings.precision) as accelerator:
        score = score_video_split if is_manifest else score_feature_split
        scored = score(files, config, source, settings, accelerator)
        is_main = accelerator.is_main_process
    report = _report(scored, config, settings, _chosen_on(files, config, settings))
    if is_main:
        name = settings.predictions_name
        _print(report, scored.faults, settings, name, console)
        record = _record(report, files, config, settings, scored)
        predictions = Predictions(
            video_ids=scored.usable.video_ids,
            logits=scored.logits,
            targets=scored.targets,
            record=record,
        )
        write_predictions(files.predictions, name, predictions, scored.usable.rows, config)
    return report


def _record(
    report: EvaluateReport,
    files: RunFolder,
    config: NetworkConfig,
    settings: EvaluateSettings,
    scored: ScoredSplit | ScoredFrames,
) -> dict[str, Any]:
    """Return the contents of SPLIT.json."""
    return {
        "settings": asdict(settings),
        "model": model_digest(weights_file(files, settings)),
        "source": scored.source,
        "faults": scored.faults,
        "classes": config.class_names,
        **report.to_json(),
    }


def _evaluate_frames(
    files: RunFolder,
    config: NetworkConfig,
    source: str | Path,
    settings: EvaluateSettings,
    device: str,
    console: Console,
) -> EvaluateReport:
    """Score a model of a task on frames, see `evaluate`; SPLIT.csv has the segments."""
    names = ["clips", "shuffle_frames", "protocol", "clip_frames", "clip_seconds"]
    check_unset(settings, names, f"{files.root} segments whole videos")
    stored = read_settings(files)
    path = settings.segments
    if path is None:
        path = stored.get("segments")
        if path is None or not Path(path).exists():
            raise SettingsError(
                f"{files.root}: give --segments FILE, with the segments of the videos; those that "
                "it was trained with are not there"
            )
        settings = replace(settings, segments=path)
    segments = read_segments(path)
    background = background_of(config, stored)
    with accelerated(device, settings.precision) as accelerator:
        score = score_video_frames if Path(source).is_file() else score_feature_frames
        scored = score(files, config, source, settings, accelerator, segments, background)
        is_main = accelerator.is_main_process
    temporal, options = config.temporal, settings.decoding_options
    logits = [video.logits for video in scored.videos]
    counts = FrameCounts(logits, scored.targets, temporal, options)
    groups = settings.group and [group_of(row, settings.group) for row in scored.usable.rows]
    report = EvaluateReport(
        task=temporal.task,
        metrics=counts.metrics(config.class_names),
        intervals=resampled_intervals(
            counts.over,
            len(logits),
            num_resamples=settings.bootstrap,
            seed=settings.seed,
            groups=groups or None,
        ),
        baselines={},
        chosen_on=_chosen_on(files, config, settings),
        counts=scored.counts,
    )
    if is_main:
        name = settings.predictions_name
        say(console, *(f"note: {note}" for note in scored.notes))
        _print(report, scored.faults, settings, name, console)
        record = _record(report, files, config, settings, scored)
        predictions = FramePredictions(videos=scored.videos, targets=scored.targets, record=record)
        write_frame_predictions(
            files.predictions, name, predictions, config.class_names, temporal, options
        )
    return report


def compare_runs(
    first: str | Path,
    second: str | Path,
    settings: EvaluateSettings | None = None,
    *,
    console: Console | None = None,
) -> Comparison:
    """Compare two runs on the videos of a split, by the predictions that `evaluate` stored.

    Args:
        first: model or run folder.
        second: another one.
        settings: split, group and resamples; by default `EvaluateSettings()`.
        console: for the result; by default nothing is printed.

    Raises:
        VtnpipeError: a run has no predictions for the split, or the two have no videos in common.
    """
    settings = settings or EvaluateSettings()
    if settings.group == BY_FILE:
        raise SettingsError(
            "--group file: stored predictions have no paths; give a regular expression for the ids"
        )
    config = read_config(RunFolder(Path(first)))
    if config.temporal.is_per_frame:
        raise SettingsError(
            f"{first}: is for the task {config.temporal.task}, of which runs cannot be compared; "
            "compare the intervals of their metrics"
        )
    name = settings.predictions_name
    found = []
    for folder in (first, second):
        predictions = read_predictions(RunFolder(Path(folder)).predictions, name)
        if predictions is None:
            raise SettingsError(
                f"{folder}: has no predictions/{name}.json; write it with `vtnpipe evaluate "
                f"{folder} FEATURES --split {settings.split}`"
            )
        found.append(predictions)
    order = {video_id: number for number, video_id in enumerate(found[1].video_ids)}
    common = [n for n, video_id in enumerate(found[0].video_ids) if video_id in order]
    video_ids = [found[0].video_ids[number] for number in common]
    others = [order[video_id] for video_id in video_ids]
    targets = found[0].targets[common]
    is_same = len(common) > 0 and torch.equal(targets, found[1].targets[others])
    if not is_same or read_config(RunFolder(Path(second))).class_names != config.class_names:
        raise SettingsError(
            f"{first} and {second} were not scored on the same videos with the same labels; "
            "evaluate both on one manifest"
        )
    groups = settings.group and [
        group_of(VideoRow(video_id=video_id, path=video_id), settings.group)
        for video_id in video_ids
    ]
    result = compare(
        found[0].logits[common],
        found[1].logits[others],
        targets,
        config.temporal,
        num_resamples=settings.bootstrap or EvaluateSettings.bootstrap,
        seed=settings.seed,
        groups=groups or None,
    )
    console = console or Console(quiet=True)
    low, high = result.interval
    say(
        console,
        f"split {settings.split}, {counted(len(common), 'video')}: "
        f"{metric_text(result.metric, result.first)} for {first}, "
        f"{metric_text(result.metric, result.second)} for {second}",
        f"difference {result.second - result.first:+.4f} ({low:+.4f} to {high:+.4f})",
    )
    if result.p_value is not None:
        say(
            console,
            f"{result.only_first:,} videos are right in the first only, {result.only_second:,} in "
            f"the second only: p = {result.p_value:.3g} (McNemar, exact)",
        )
    return result


def _check_source(source: str | Path, settings: EvaluateSettings) -> bool:
    """Return whether the source is a manifest, after checking the settings against it.

    Raises:
        SettingsError: it does not exist, or a setting does not fit it.
    """
    if not Path(source).exists():
        raise SettingsError(f"{source}: does not exist; give a feature folder or a manifest")
    is_manifest = Path(source).is_file()
    if is_manifest and settings.protocol == "paper":
        raise SettingsError(
            f"--protocol paper: {source} is a manifest; extract its videos with `--weights MODEL` "
            "first, and give the feature folder"
        )
    if is_manifest and (settings.mode == "features" or settings.manifest is not None):
        raise SettingsError(
            f"{source}: is a manifest, whose videos are decoded; leave out --mode features and "
            "--manifest, or give a feature folder"
        )
    if not is_manifest and settings.mode in ("chunked", "end-to-end"):
        raise SettingsError(
            f"--mode {settings.mode}: {source} is a feature folder, and that mode decodes the "
            "videos of a manifest; leave it out, or give a manifest"
        )
    if not is_manifest:
        check_unset(settings, ["chunk_frames", "decoder"], f"{source} is a feature folder")
    return is_manifest


def _with_manifest_of_run(
    files: RunFolder, features: Path, settings: EvaluateSettings, console: Console
) -> EvaluateSettings:
    """Return settings with the manifest that a run was trained with on these features, if any."""
    stored = read_settings(files)
    manifest, trained_on = stored.get("manifest"), stored.get("source")
    if manifest is None or trained_on is None or not _is_same_folder(Path(trained_on), features):
        return settings
    if not Path(manifest).exists():
        say(
            console,
            f"{manifest}, whose labels and splits {files.root} was trained with, is gone; those of "
            f"{features} are used",
        )
        return settings
    say(console, f"labels and splits: {manifest}, as in training; --manifest gives others")
    return replace(settings, manifest=manifest)


def _is_same_folder(one: Path, other: Path) -> bool:
    return one.exists() and one.samefile(other)


def _report(
    scored: ScoredSplit,
    config: NetworkConfig,
    settings: EvaluateSettings,
    chosen_on: tuple[str, ...],
) -> EvaluateReport:
    usable, logits, targets = scored.usable, scored.logits, scored.targets
    groups = settings.group and [group_of(row, settings.group) for row in usable.rows]
    return EvaluateReport(
        task=config.temporal.task,
        metrics=task_metrics(logits, targets, config.class_names, config.temporal),
        intervals=confidence_intervals(
            logits,
            targets,
            config.temporal,
            num_resamples=settings.bootstrap,
            seed=settings.seed,
            groups=groups or None,
        ),
        baselines={
            name: task_metrics(found, targets, config.class_names, config.temporal)
            for name, found in scored.baselines.items()
        },
        chosen_on=chosen_on,
        counts=usable.counts,
    )


def _chosen_on(
    files: RunFolder, config: NetworkConfig, settings: EvaluateSettings
) -> tuple[str, ...]:
    """Return what a run chose on the split: its epoch, and the factor of the learned logits."""
    stored = read_settings(files)
    if stored.get("val_split") != settings.split:
        return ()
    keeps_best = stored.get("keep", "best") == "best"  # vtnpipe 0.1 did
    is_epoch = keeps_best and settings.weights == "kept"
    has_blend = config.temporal.shortcut != "none"
    return ("epoch",) * is_epoch + ("factor of the learned logits",) * has_blend


def _print(
    report: EvaluateReport,
    faults: Sequence[str],
    settings: EvaluateSettings,
    name: str,
    console: Console,
) -> None:
    file = f"predictions/{name}.json"
    say_some(console, [f"lost {fault}" for fault in faults], f" videos in {file}")
    of_frames = isinstance(report.metrics, FrameMetrics)
    lines = list((_segment_lines if of_frames else _class_lines)(report.metrics))
    say(console, *lines[:1])
    say_some(console, lines[1:], f" classes in {file}")
    clips = f", {settings.clips} clips per video" if settings.clips else ""
    shuffled = ", frames shuffled" if settings.shuffle_frames else ""
    metrics = metrics_text(report.values, intervals=report.intervals)
    say(console, f"split {settings.split}{clips}{shuffled}: {metrics}")
    if report.baselines:
        say_baselines(console, report.values, report.baselines)
    if report.chosen_on:
        say(
            console,
            f"split {settings.split} chose the {' and the '.join(report.chosen_on)}, so these "
            "metrics are optimistic; evaluate another split",
        )
    per_class = getattr(report.metrics, "per_class", {})
    if report.task == "classification" and sum(v is not None for v in per_class.values()) == 1:
        say(console, f"split {settings.split} has one class only: its accuracy says little")
    counts = report.counts
    dropped = f", {counts.dropped} left out as partial" if counts.dropped else ""
    warning = "" if report.exit_code == EXIT_OK else "  <- not all of the split"
    say(
        console,
        f"videos: {counts.expected} expected, {counts.scored} scored, {counts.missing} missing, "
        f"{counts.partial} partial{dropped}{warning}",
    )


def _class_lines(metrics: Metrics) -> Iterator[str]:
    """Yield the lines of a table of classes, with their metrics and most frequent predictions."""
    per_class: dict[str, float | None] = getattr(metrics, "per_class", {})
    confusion: list[list[int]] = getattr(metrics, "confusion", [])
    classes = list(per_class)
    if classes:
        width = max(12, *map(len, classes))
        heading = "accuracy  predicted as (videos)" if confusion else "average precision"
        yield f"{'class'.ljust(width)}  {heading}"
    for index, one in enumerate(classes):
        value = per_class[one]
        share = "       –" if value is None else f"{value:8.1%}"
        counts = zip(confusion[index] if confusion else (), classes, strict=False)
        found = ", ".join(f"{name} {n}" for n, name in sorted(counts, reverse=True)[:4] if n)
        yield f"{one.ljust(width)}  {share}  {found}".rstrip()


def _segment_lines(metrics: Any) -> Iterator[str]:
    """Yield the lines of a table of classes: frames, and segments at an overlap of 50%."""
    width = max(12, *map(len, metrics.per_class))
    heading = "accuracy" if metrics.confusion else "average precision"
    yield f"{'class'.ljust(width)}  {heading}  segments: found of true, predicted"
    for name, share in metrics.per_class.items():
        num_true, num_predicted, num_found = metrics.segments[name]
        value = ("–" if share is None else f"{share:.1%}").rjust(len(heading))
        yield f"{name.ljust(width)}  {value}  {num_found:,} of {num_true:,}, {num_predicted:,}"


@click.command("evaluate")
@click.argument("model")
@click.argument("source")
@settings_options(EvaluateSettings)
def command(model: str, source: str, console: Console, **options: Any) -> int:
    """Score MODEL, a model or run folder, on a split of SOURCE: a feature folder, or a manifest
    whose videos are decoded.

    If SOURCE is another run, compare the two on the videos of a split that both have scored.
    """
    settings = EvaluateSettings(**options)
    if RunFolder(Path(source)).config.exists():
        compare_runs(model, source, settings, console=console)
        return EXIT_OK
    return evaluate(model, source, settings, console=console).exit_code

"""`vtnpipe report`: one HTML page about a run, or about a feature folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from ..extract.device import resolve_device
from ..manifests.atomic import read_json
from ..manifests.errors import EXIT_OK, ManifestError, SettingsError
from ..manifests.feature_folder import FeatureFolder
from ..manifests.feature_store import FeatureStore, open_features
from ..manifests.manifest import VideoRow, read_manifest
from ..manifests.plan import read_file_sizes
from ..manifests.segments import read_segments
from ..temporal.checkpoint import RunFolder
from ..temporal.frame_labels import label_frames
from ..temporal.tasks import read_targets
from .console import say
from .html.attention import VideoStrip
from .html.report_features import extraction_section
from .html.report_page import RunSection, choose_videos, run_section, video_strips, write_report
from .html.timeline import choose_segmented_videos, segment_strips
from .inference.evaluation import EvaluateSettings
from .inference.frame_evaluation import background_of
from .inference.predictions import Predictions, read_predictions
from .inference.segmentation import FramePredictions, read_frame_predictions
from .models.model_folder import NetworkConfig, check_features, model_digest, read_config
from .options import settings_options
from .settings import at_least, check_output, check_settings, check_unset, device_setting, setting
from .training.session import read_settings

DECODING_SETTINGS = ("decoding", "transition_cost", "min_seconds")
RUN_SETTINGS = ("split", "source", "videos", "manifest")  # no effect on feature folders


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Settings of `vtnpipe report`."""

    output: str | None = setting(
        None,
        help="Page to write; by default report.html in the folder.",
        short="-o",
        metavar="FILE",
    )
    split: str | None = setting(
        None,
        help="Split to show of a run; by default the one evaluated last, or its validation split.",
    )
    source: str | None = setting(
        None,
        help="Feature folder or manifest of that split; by default what the run was trained on.",
        metavar="FOLDER|MANIFEST",
    )
    videos: int = setting(
        4, help="Number of the worst videos to show, and of the best.", check=at_least(0)
    )
    frames: int = setting(10, help="Thumbnails per video.", check=at_least(1))
    manifest: str | None = setting(
        None,
        help="Labels and splits of the features; by default those that the run was trained with.",
        metavar="FILE",
    )
    device: str = device_setting()

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Run and its data.

    Attributes:
        files: run folder.
        config: configuration of its model.
        settings: settings that it was started with.
        source: feature folder or manifest; None if it is not known or gone.
        store: features; None if the source is a manifest.
        rows: video_id → row of the manifest.
    """

    files: RunFolder
    config: NetworkConfig
    settings: dict[str, Any]
    source: Path | None
    store: FeatureStore | None
    rows: dict[str, VideoRow]


def report(
    folder: str | Path,
    settings: ReportSettings | None = None,
    *,
    console: Console | None = None,
) -> Path:
    """Write a self-contained HTML page.

    A run's page shows the predictions that `vtnpipe evaluate` wrote, if they are those of this
    model for these features and labels.

    Args:
        folder: run or model folder, or feature folder.
        settings: by default `ReportSettings()`.
        console: for the path of the page; by default nothing is printed.

    Returns:
        the page's path.

    Raises:
        VtnpipeError: the folder is neither, or a setting is invalid.
    """
    settings = settings or ReportSettings()
    console = console or Console(quiet=True)
    root = Path(folder)
    path = root / "report.html"
    if settings.output is not None:
        path = check_output(Path(settings.output))
    if FeatureFolder(root).extraction.exists():
        check_unset(settings, RUN_SETTINGS, f"{root} is a feature folder, not a run")
        store: FeatureStore | None = open_features(root)
        subtitle, run, notes = f"features of {root}", None, list[str]()
    else:
        subtitle = f"run {root}"
        run, store, notes = _run_section(RunFolder(root), settings)
    extraction = None
    if store is not None:
        rows = _rows(store.folder.manifest)
        extraction = extraction_section(store, rows, num_frames=settings.frames)
    write_report(
        path,
        title=root.absolute().name,
        subtitle=subtitle,
        run=run,
        extraction=extraction,
        notes=notes,
    )
    say(console, *(f"note: {note}" for note in notes))
    say(console, f"{path}: {path.stat().st_size / 2**20:,.1f} MiB; open it in a browser")
    return path


def _run_section(
    files: RunFolder, settings: ReportSettings
) -> tuple[RunSection, FeatureStore | None, list[str]]:
    """Return a run's section, its features if they are there, and notes on what is missing."""
    run_settings = read_settings(files)
    evaluation = EvaluateSettings(
        split=run_settings.get("val_split", "val") if settings.split is None else settings.split,
        manifest=settings.manifest or run_settings.get("manifest"),
        drop_partial=run_settings.get("drop_partial", False),
        device=resolve_device(settings.device),
    )
    notes: list[str] = []
    source = _source(files, run_settings.get("source"), settings, notes)
    store = open_features(source) if source is not None and source.is_dir() else None
    manifest = source
    if store is not None:
        manifest = Path(evaluation.manifest or store.folder.manifest)
    run = _Run(
        files=files,
        config=read_config(files),
        settings=run_settings,
        source=source,
        store=store,
        rows=_rows(manifest),
    )
    if settings.split is None:
        others = (replace(evaluation, split=split) for split in _evaluated_splits(files))
        evaluation = next((one for one in others if not _stored(run, one)[1]), evaluation)
    predictions = _predictions(run, evaluation, notes)
    strips: tuple[list[VideoStrip], list[VideoStrip]] = ([], [])
    if isinstance(predictions, FramePredictions):
        strips = _segment_strips(run, predictions, settings)
    elif predictions is not None and source is not None:
        chosen = choose_videos(run.config, predictions, settings.videos)
        strips = _strips(run, predictions, chosen, settings, evaluation.device)
        num_shown = len(strips[0]) + len(strips[1])
        if num_shown < len(chosen[0]) + len(chosen[1]):
            notes.append(
                f"only {num_shown} videos are shown; the others have no frames, or are not in "
                f"{source}"
            )
    return run_section(files, run.config, predictions, strips, run_settings), store, notes


def _segment_strips(
    run: _Run, predictions: FramePredictions, settings: ReportSettings
) -> tuple[list[VideoStrip], list[VideoStrip]]:
    """Return strips of the worst and of the best videos, with truth and prediction."""
    used = EvaluateSettings(
        **{name: predictions.record["settings"][name] for name in DECODING_SETTINGS}
    )
    config, decoding = run.config, used.decoding_options
    worst, best = choose_segmented_videos(predictions, config.temporal, decoding, settings.videos)
    ids = [predictions.video_ids[number] for number in worst + best]
    sizes = {} if run.store is None else read_file_sizes(run.store.folder, ids)
    strips = segment_strips(
        predictions,
        worst + best,
        run.rows,
        sizes,
        config.temporal,
        config.class_names,
        decoding,
        num_frames=settings.frames,
    )
    return strips[: len(worst)], strips[len(worst) :]


def _evaluated_splits(files: RunFolder) -> list[str]:
    """Return the splits of plain evaluations (no other clips, weights or order), newest first."""
    found = []
    for path in sorted(files.predictions.glob("*.json"), key=lambda path: -path.stat().st_mtime):
        split = read_json(path, "evaluate again").get("settings", {}).get("split")
        if split is not None and EvaluateSettings(split=split).predictions_name == path.stem:
            found.append(str(split))
    return found


def _rows(manifest: Path | None) -> dict[str, VideoRow]:
    """Return video_id → row of a manifest; empty if it does not exist."""
    if manifest is None or not manifest.exists():
        return {}
    return {row.video_id: row for row in read_manifest(manifest)}


def _source(
    files: RunFolder, trained_on: str | None, settings: ReportSettings, notes: list[str]
) -> Path | None:
    """Return the path of a run's features or manifest; None, with a note, if it is unknown."""
    if settings.source is not None:
        source = Path(settings.source)
        if not source.exists():
            raise SettingsError(
                f"--source {source}: no such feature folder or manifest; leave it out to use the "
                "run's own"
            )
        return source
    found = None if trained_on is None else Path(trained_on)
    if found is None or not found.exists():
        what = "its training data is not recorded" if found is None else f"{found} is gone"
        notes.append(
            f"{files.root}: {what}, so the page shows no videos and no features; give --source"
        )
        return None
    return found


def _predictions(
    run: _Run, evaluation: EvaluateSettings, notes: list[str]
) -> Predictions | FramePredictions | None:
    """Return the split's stored predictions; None, with a note, if they are missing or outdated."""
    stored, fault = _stored(run, evaluation)
    if not fault:
        return stored
    source = run.source or "SOURCE"
    options = f" --manifest {evaluation.manifest}" if evaluation.manifest and run.store else ""
    notes.append(
        f"{fault}; run `vtnpipe evaluate {run.files.root} {source} --split "
        f"{evaluation.split}{options}`, then report again"
    )
    return None


def _stored(
    run: _Run, evaluation: EvaluateSettings
) -> tuple[Predictions | FramePredictions | None, str]:
    """Return the split's stored predictions, and why they are not to be used, or ""."""
    read = read_frame_predictions if run.config.temporal.is_per_frame else read_predictions
    stored = read(run.files.predictions, evaluation.predictions_name)
    if stored is None:
        return None, f"split {evaluation.split} has not been evaluated"
    return stored, _why_outdated(stored, run, evaluation)


def _why_outdated(
    stored: Predictions | FramePredictions, run: _Run, evaluation: EvaluateSettings
) -> str:
    """Return why stored predictions are not those of the run's model and data; "" if they are."""
    record, config = stored.record, run.config
    if (
        record.get("model") != model_digest(run.files.kept)
        or record["classes"] != config.class_names
    ):
        return "the stored predictions are of another model"
    used = record["settings"].get("manifest")
    manifests = [
        None if one is None else Path(one).absolute() for one in (used, evaluation.manifest)
    ]
    if manifests[0] != manifests[1]:
        return "the stored predictions were made with another manifest"
    if record["settings"].get("drop_partial") != evaluation.drop_partial:
        return "the stored predictions were made with another --drop-partial"
    if run.store is None and not run.rows:  # the source is gone: nothing to compare with
        return ""
    if run.store is not None and record["source"] != f"features {run.store.fingerprint}":
        return "the stored predictions are of other features"
    known = [run.rows[video_id] for video_id in stored.video_ids if video_id in run.rows]
    if len(known) < len(stored.video_ids):
        return "the stored predictions are of other videos"
    if isinstance(stored, FramePredictions):
        return "" if _has_same_labels(stored, run) else "the segments have changed"
    targets = read_targets(known, config.class_names, config.temporal.task)
    return "" if torch.equal(targets, stored.targets) else "the labels have changed"


def _has_same_labels(stored: FramePredictions, run: _Run) -> bool:
    """Return whether the segment file of predictions, if it is still there, gives their labels."""
    config, path = run.config, Path(stored.record["settings"]["segments"])
    if not path.exists():
        return True
    times = dict(zip(stored.video_ids, stored.targets.times, strict=True))
    try:
        labels = label_frames(
            read_segments(path),
            stored.video_ids,
            times.__getitem__,
            config.class_names,
            config.temporal.task,
            background_of(config, run.settings),
            is_partial=lambda video_id: True,
        )
    except ManifestError:
        return False
    return torch.equal(labels.values, stored.targets.values)


def _strips(
    run: _Run,
    predictions: Predictions,
    chosen: tuple[list[int], list[int]],
    settings: ReportSettings,
    device: str,
) -> tuple[list[VideoStrip], list[VideoStrip]]:
    """Return strips of the worst and of the best videos, of those that can be shown."""
    if run.store is not None:
        check_features(run.config, run.store.spec, run.store.folder.root)
    known = run.rows if run.store is None else run.rows.keys() & run.store.keys()
    worst, best = (
        [number for number in numbers if predictions.video_ids[number] in known]
        for numbers in chosen
    )
    strips = video_strips(
        run.files,
        run.config,
        predictions,
        worst + best,
        run.rows,
        run.store,
        num_frames=settings.frames,
        device=device,
    )
    is_worst = {predictions.video_ids[number] for number in worst}
    return (
        [strip for strip in strips if strip.name in is_worst],
        [strip for strip in strips if strip.name not in is_worst],
    )


@click.command("report")
@click.argument("folder")
@settings_options(ReportSettings)
def command(folder: str, console: Console, **options: Any) -> int:
    """Write one HTML page about FOLDER, a run or model folder, or a feature folder.

    For a run: metrics, curves, confusion, classes, and attention in its worst and best videos, from
    the predictions that `vtnpipe evaluate` wrote. For features: failures, properties of the videos,
    and statistics of the features.
    """
    report(folder, ReportSettings(**options), console=console)
    return EXIT_OK

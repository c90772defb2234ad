"""`vtnpipe report`: one HTML page of a run, or of a feature folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..manifests.errors import SettingsError
from ..manifests.feature_folder import FeatureFolder
from ..temporal.run_folder import RunFolder
from . import common_settings
from .console import say
from .evaluate import EvaluateSettings, evaluated, predictions_name
from .html.page import write_page
from .inference.predictions import Predictions, read_predictions
from .settings import at_least, check_output, check_settings, check_unset, setting

if TYPE_CHECKING:
    from ..manifests.feature_store import FeatureStore
    from ..manifests.manifest import VideoRow
    from .html.attention import Strip
    from .models.model_folder import NetworkConfig

OF_RUNS = ("split", "source", "videos", "manifest")  # settings


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The settings of `vtnpipe report`."""

    output: str | None = setting(
        None,
        help="The page to write; by default report.html in the folder.",
        short="-o",
        metavar="FILE",
    )
    split: str | None = setting(
        None, help="Split to show of a run; by default the one that it was validated on."
    )
    source: str | None = setting(
        None,
        help="Feature folder or manifest of that split; by default what the run was fitted on.",
        metavar="FOLDER|MANIFEST",
    )
    videos: int = setting(
        4, help="How many of the worst videos to show, and of the best.", check=at_least(0)
    )
    frames: int = setting(10, help="Pictures of each video.", check=at_least(1))
    manifest: str | None = setting(
        None,
        help="Labels and splits of the features; by default those that the run was fitted with.",
        metavar="FILE",
    )
    device: str = common_settings.device()

    def __post_init__(self) -> None:
        check_settings(self)


def report(
    folder: str | Path,
    settings: ReportSettings | None = None,
    *,
    console: Console | None = None,
) -> Path:
    """Writes a page that needs nothing but itself.

    A run's split is evaluated where `predictions/` does not hold what this model says of these
    features and labels, if its source is a feature folder; what lies there stays as it is.

    Args:
        folder: a run or model folder, or a feature folder.
        settings: by default, `ReportSettings()`.
        console: for where the page is; by default, nothing is printed.

    Returns:
        the page's path.

    Raises:
        VtnpipeError: the folder is neither, or a setting breaks a rule.
    """
    from ..manifests.shards import open_features

    settings = settings or ReportSettings()
    console = console or Console(quiet=True)
    root = Path(folder)
    path = root / "report.html"
    if settings.output is not None:
        path = check_output(Path(settings.output))
    if FeatureFolder(root).extraction.exists():
        check_unset(settings, OF_RUNS, f"{root} is a feature folder, and no run")
        values = _extraction(open_features(root), settings)
    else:
        values = _run(RunFolder(root), settings, console)
    title = root.absolute().name
    write_page(path, "report.html", title=title, **values)
    say(console, f"{path}: {path.stat().st_size / 2**20:,.1f} MiB; open it in a browser")
    return path


def _extraction(store: "FeatureStore", settings: ReportSettings) -> dict[str, Any]:
    from .html.features_page import extraction_section

    section = extraction_section(store, _rows(store.folder.manifest), num_frames=settings.frames)
    return {
        "subtitle": f"features of {store.folder.root}",
        "run": None,
        "extraction": section,
        "notes": [],
    }


def _run(files: RunFolder, settings: ReportSettings, console: Console) -> dict[str, Any]:
    from ..extract.device import resolve_device
    from ..manifests.shards import open_features
    from .html.run_page import read_begun, run_section
    from .models.model_folder import read_config

    config = read_config(files)
    begun = read_begun(files)
    evaluation = EvaluateSettings(
        split=settings.split or begun.get("val_split", "val"),
        manifest=settings.manifest or begun.get("manifest"),
        drop_partial=begun.get("drop_partial", False),
        device=resolve_device(settings.device),
    )
    notes: list[str] = []
    source = _source(files, begun.get("source"), settings, notes)
    store = open_features(source) if source is not None and source.is_dir() else None
    manifest = source
    if store is not None:
        manifest = Path(evaluation.manifest or store.folder.manifest)
    rows = _rows(manifest)
    predictions = _predictions(files, config, store, rows, evaluation, notes, console)
    strips: tuple[list[Strip], list[Strip]] = ([], [])
    if predictions is not None and source is not None:
        strips = _strips(files, config, predictions, store, rows, settings, evaluation.device)
        num_shown = len(strips[0]) + len(strips[1])
        if num_shown < min(2 * settings.videos, len(predictions.video_ids)):
            notes.append(
                f"only {num_shown} videos are shown: the others have no frames, or are not in "
                f"{source}"
            )
    values = {"extraction": None} if store is None else _extraction(store, settings)
    return values | {
        "subtitle": f"a run: {files.root}",
        "run": run_section(files, config, predictions, strips),
        "notes": notes,
    }


def _rows(manifest: Path | None) -> dict[str, "VideoRow"]:
    from ..manifests.manifest import read_manifest

    if manifest is None or not manifest.exists():
        return {}
    return {row.video_id: row for row in read_manifest(manifest)}


def _source(
    files: RunFolder, begun_with: str | None, settings: ReportSettings, notes: list[str]
) -> Path | None:
    """Where a run's videos or features are; None, and a note, where that is not known."""
    if settings.source is not None:
        source = Path(settings.source)
        if not source.exists():
            raise SettingsError(
                f"--source {source}: no such feature folder or manifest; without it, the run's own "
                "is looked for"
            )
        return source
    found = None if begun_with is None else Path(begun_with)
    if found is None or not found.exists():
        what = "it does not say what it was fitted on" if found is None else f"{found} is gone"
        notes.append(
            f"{files.root}: {what}, so no videos are shown, nor their features; give --source"
        )
        return None
    return found


def _predictions(
    files: RunFolder,
    config: "NetworkConfig",
    store: "FeatureStore | None",
    rows: dict[str, "VideoRow"],
    evaluation: EvaluateSettings,
    notes: list[str],
    console: Console,
) -> "Predictions | None":
    """Those of the split: what lies there, where it is what this model says of these videos and
    labels; made now, where that takes no decoding; none, and a note, else.
    """
    name = predictions_name(evaluation)
    stored = read_predictions(files.predictions, name)
    fault = f"split {evaluation.split} has not been evaluated"
    if stored is not None:
        fault = _why_others(stored, files, config, store, rows, evaluation)
        if not fault:
            return stored
    if store is not None:
        say(console, f"{fault}: evaluating it on {store.folder.root}")
        return evaluated(files.root, store.folder.root, evaluation).predictions
    command = f"`vtnpipe evaluate {files.root} SOURCE --split {evaluation.split}`"
    notes.append(f"{fault}: {command} does it")
    return None


def _why_others(
    stored: "Predictions",
    files: RunFolder,
    config: "NetworkConfig",
    store: "FeatureStore | None",
    rows: dict[str, "VideoRow"],
    evaluation: EvaluateSettings,
) -> str:
    """Why stored predictions are not those that are meant; empty where they are."""
    import torch

    from ..temporal.tasks import read_targets
    from .models.model_folder import model_digest

    record = stored.record
    if record.get("model") != model_digest(files) or record["classes"] != config.class_names:
        return "its predictions are of another model"
    used = record["settings"].get("manifest")
    manifests = [
        None if one is None else Path(one).absolute() for one in (used, evaluation.manifest)
    ]
    if manifests[0] != manifests[1]:
        return "its predictions were made with another manifest"
    if record["settings"].get("drop_partial") != evaluation.drop_partial:
        return "its predictions were made with other partial videos"
    if store is None and not rows:  # the source is gone: nothing to compare with
        return ""
    if store is not None and record["source"] != f"features {store.extraction['fingerprint']}":
        return "its predictions are of other features"
    known = [rows[video_id] for video_id in stored.video_ids if video_id in rows]
    if len(known) < len(stored.video_ids):
        return "its predictions are of other videos"
    targets = read_targets(known, config.class_names, config.temporal.task)
    return "" if torch.equal(targets, stored.targets) else "its labels have changed since"


def _strips(
    files: RunFolder,
    config: "NetworkConfig",
    predictions: "Predictions",
    store: "FeatureStore | None",
    rows: dict[str, "VideoRow"],
    settings: ReportSettings,
    device: str,
) -> "tuple[list[Strip], list[Strip]]":
    """Of the worst and of the best videos."""
    from .html.run_page import choose_videos, video_strips
    from .models.model_folder import check_features

    if store is not None:
        check_features(config, store.extraction["identity"], store.folder.root)
    known = rows if store is None else rows.keys() & store.keys()
    worst, best = (
        [number for number in numbers if predictions.video_ids[number] in known]
        for numbers in choose_videos(config, predictions, settings.videos)
    )
    strips = video_strips(
        files,
        config,
        predictions,
        worst + best,
        rows,
        store,
        num_frames=settings.frames,
        device=device,
    )
    is_worst = {predictions.video_ids[number] for number in worst}
    return (
        [strip for strip in strips if strip.name in is_worst],
        [strip for strip in strips if strip.name not in is_worst],
    )

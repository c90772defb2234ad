"""`vtnpipe report`: one HTML page of a run, or of a feature folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..manifests.errors import FeaturesError, SettingsError
from ..manifests.folder import FeatureFolder
from .evaluate import EvaluateSettings, evaluate, predictions_name
from .options import at_least, check_settings, setting
from .pages import write_page
from .predictions import Predictions, read_predictions
from .progress import say

if TYPE_CHECKING:
    from ..manifests.videos import VideoRow
    from ..temporal.checkpoint import RunFolder
    from .model_folder import NetworkConfig
    from .strips import Strip


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """The settings of `vtnpipe report`."""

    output: str | None = setting(
        None, help="By default report.html in the folder.", short="-o", metavar="FILE"
    )
    split: str = setting("val", help="That is shown of a run.")
    source: str | None = setting(
        None,
        help="Feature folder or manifest of that split; by default what the run was fitted on.",
        metavar="FOLDER|MANIFEST",
    )
    videos: int = setting(4, help="To show of the worst, and of the best.", check=at_least(0))
    frames: int = setting(10, help="Pictures of each.", check=at_least(1))
    device: str = setting("auto", help="Where to run.", metavar="auto|cpu|cuda|cuda:N")

    def __post_init__(self) -> None:
        check_settings(self)


def report(
    folder: str | Path,
    settings: ReportSettings | None = None,
    *,
    console: Console | None = None,
) -> Path:
    """Writes a page that needs nothing but itself.

    A run's split is evaluated first where it has not been since the model was written, if its
    source is a feature folder.

    Args:
        folder: a run or model folder, or a feature folder.
        settings: by default, `ReportSettings()`.
        console: for where the page is; by default, nothing is printed.

    Returns:
        the page's path.

    Raises:
        VtnpipeError: the folder is neither, or a setting breaks a rule.
    """
    from ..temporal.checkpoint import RunFolder

    settings = settings or ReportSettings()
    console = console or Console(quiet=True)
    root = Path(folder)
    path = root / "report.html" if settings.output is None else Path(settings.output)
    if settings.output is not None and not path.parent.is_dir():
        raise SettingsError(f"--output {path}: its folder is missing")
    if FeatureFolder(root).extraction.exists():
        if settings.source is not None:
            raise SettingsError(
                f"--source {settings.source}: {root} is a feature folder itself; leave it out"
            )
        values = _extraction(root, settings)
    else:
        values = _run(RunFolder(root), settings, console)
    title = root.absolute().name
    write_page(path, "report.html", title=title, **values)
    say(console, f"{path}: {path.stat().st_size / 2**20:,.1f} MiB; open it in a browser")
    return path


def _extraction(root: Path, settings: ReportSettings) -> dict[str, Any]:
    from ..manifests.shards import open_features
    from .report_features import extraction_section

    store = open_features(root)
    section = extraction_section(store, _rows(store.folder.manifest), num_frames=settings.frames)
    return {"subtitle": f"features of {root}", "run": None, "extraction": section, "notes": []}


def _run(files: "RunFolder", settings: ReportSettings, console: Console) -> dict[str, Any]:
    from ..extract.device import resolve_device
    from .model_folder import read_config
    from .report_run import run_section

    config = read_config(files)
    device = resolve_device(settings.device)
    notes: list[str] = []
    source = _source(files, settings, notes)
    predictions = _predictions(files, config, source, settings, notes, console)
    strips: tuple[list[Strip], list[Strip]] = ([], [])
    if predictions is not None and source is not None:
        strips = _strips(files, config, predictions, source, settings, device)
    values: dict[str, Any] = {"extraction": None}
    if source is not None and source.is_dir():
        values = _extraction(source, settings)
    return values | {
        "subtitle": f"a run: {files.root}",
        "run": run_section(files, config, predictions, strips),
        "notes": notes,
    }


def _rows(manifest: Path) -> dict[str, "VideoRow"]:
    from ..manifests.videos import read_manifest

    return {row.video_id: row for row in read_manifest(manifest)} if manifest.exists() else {}


def _source(files: "RunFolder", settings: ReportSettings, notes: list[str]) -> Path | None:
    """Where a run's videos or features are; None, and a note, where that is not known."""
    from .report_run import source_of_run

    if settings.source is not None:
        source = Path(settings.source)
        if not source.exists():
            raise SettingsError(f"--source {source}: no such feature folder or manifest")
        return source
    found = source_of_run(files)
    if found is None or not found.exists():
        what = "it does not say what it was fitted on" if found is None else f"{found} is gone"
        notes.append(
            f"{files.root}: {what}, so no videos are shown, nor their features; give --source"
        )
        return None
    return found


def _predictions(
    files: "RunFolder",
    config: "NetworkConfig",
    source: Path | None,
    settings: ReportSettings,
    notes: list[str],
    console: Console,
) -> "Predictions | None":
    """Those of the split, made anew where they are missing or older than the model and that takes
    no decoding; None, and a note, where there are none.
    """
    evaluation = EvaluateSettings(split=settings.split, device=settings.device)
    name = predictions_name(evaluation)
    path = files.predictions / f"{name}.json"
    is_old = path.exists() and path.stat().st_mtime_ns < files.best.stat().st_mtime_ns
    if (is_old or not path.exists()) and source is not None and source.is_dir():
        say(console, f"evaluating split {settings.split} of {source}")
        evaluate(files.root, source, evaluation)
        is_old = False
    command = f"`vtnpipe evaluate {files.root} SOURCE --split {settings.split}`"
    if is_old:
        notes.append(f"{path} is older than the model: {command} makes it anew")
    predictions = read_predictions(files.predictions, name)
    if predictions is None:
        notes.append(f"split {settings.split} has not been evaluated: {command} does it")
    elif predictions.record["classes"] != config.class_names:
        raise FeaturesError(f"{path}: is of other classes than the model's; {command} mends it")
    return predictions


def _strips(
    files: "RunFolder",
    config: "NetworkConfig",
    predictions: "Predictions",
    source: Path,
    settings: ReportSettings,
    device: str,
) -> "tuple[list[Strip], list[Strip]]":
    """Of the worst and of the best videos."""
    from ..manifests.shards import open_features
    from .model_folder import check_features
    from .report_run import choose_videos, video_strips

    store = None
    if source.is_dir():
        store = open_features(source)
        check_features(config, store.extraction["identity"], source)
    rows = _rows(source if store is None else store.folder.manifest)
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

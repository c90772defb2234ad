"""Functions of the main commands for Python: settings are keywords, results are tables.

They call the functions behind `vtnpipe extract`, `train-temporal`, `evaluate` and `predict`, with
the same settings, names and defaults: `--frame-stride 2` is `frame_stride=2`.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ..manifests.errors import SettingsError
from ..manifests.feature_store import FeatureStore, open_features
from ..manifests.manifest import VideoRow, write_manifest
from .annotation.build import build_manifest
from .console import say
from .evaluate import EvaluateReport
from .evaluate import evaluate as run_evaluate
from .extract import extract
from .extraction.settings import ExtractSettings
from .inference.evaluation import EvaluateSettings
from .predict import PredictReport, PredictSettings
from .predict import predict as run_predict
from .train_temporal import train_temporal as run_train_temporal
from .training.session import TrainReport
from .training.settings import TrainTemporalSettings

S = TypeVar("S")
StrPath = str | os.PathLike[str]


def extract_features(
    videos: StrPath | Sequence[VideoRow] | Sequence[StrPath],
    features: StrPath = "features",
    *,
    console: Console | None = None,
    **settings: Any,
) -> FeatureStore:
    """Run a frozen backbone over every frame of videos; return their features.

    The same call resumes, and adds new videos. Videos that failed or are partial have a reason in
    the result's table.

    Args:
        videos: manifest; folder with a folder of videos for each class; rows of a manifest; or
            paths of videos, whose names are their ids. For all but a manifest, one is written to
            FEATURES.csv.
        features: feature folder; created if missing.
        console: for progress and results; by default standard output.
        settings: options of `vtnpipe extract`, such as `backbone="vit_small_patch14_dinov2"`.

    Raises:
        VtnpipeError: the videos, a setting or the folder is invalid; nothing has been written.
        StoppedError: the run could not be finished; the same call resumes.

    Examples:
        >>> store = vtnpipe.extract_features("videos.csv", backbone="resnet18")  # doctest: +SKIP
        >>> store["run/a.mp4"].features.shape  # doctest: +SKIP
        (250, 512)
        >>> store.to_pandas().status.value_counts()  # doctest: +SKIP
    """
    chosen = _settings(ExtractSettings, settings)
    console = console or Console()
    extract(_manifest_of(videos, Path(features), console), Path(features), chosen, console=console)
    return open_features(Path(features))


def train_temporal(
    features: StrPath | FeatureStore,
    run: StrPath,
    *,
    console: Console | None = None,
    **settings: Any,
) -> TrainReport:
    """Train a temporal model on stored features; the same call resumes.

    Args:
        features: feature folder, or a store of it.
        run: run folder; created if missing. It is the trained model, too.
        console: for progress; by default standard output.
        settings: options of `vtnpipe train-temporal`, such as `epochs=20`.

    Raises:
        VtnpipeError: features, manifest or a setting is invalid; nothing has been written.
        StoppedError: a signal asked for it; the same call resumes.

    Examples:
        >>> training = vtnpipe.train_temporal(store, "run", epochs=20)  # doctest: +SKIP
        >>> training.to_pandas().plot(x="epoch", y=["train_loss", "top1"])  # doctest: +SKIP
    """
    chosen = _settings(TrainTemporalSettings, settings)
    return run_train_temporal(_folder(features), Path(run), chosen, console=console or Console())


def evaluate(
    model: StrPath,
    source: StrPath | FeatureStore,
    *,
    console: Console | None = None,
    **settings: Any,
) -> EvaluateReport:
    """Score a model on a split's videos.

    Args:
        model: model or run folder.
        source: feature folder, made with the model's backbone, or a store of it; or a manifest,
            whose videos are decoded.
        console: for the metrics; by default standard output.
        settings: options of `vtnpipe evaluate`, such as `split="test"`.

    Raises:
        VtnpipeError: model, source or a setting is invalid.

    Examples:
        >>> report = vtnpipe.evaluate("run", store, split="test")  # doctest: +SKIP
        >>> report.values["top1"], report.intervals["top1"]  # doctest: +SKIP
        (0.91, (0.85, 0.95))
    """
    chosen = _settings(EvaluateSettings, settings)
    return run_evaluate(Path(model), _folder(source), chosen, console=console or Console())


def predict(
    model: StrPath,
    videos: StrPath | Iterable[StrPath],
    *,
    console: Console | None = None,
    **settings: Any,
) -> PredictReport:
    """Classify videos.

    Args:
        model: model or run folder.
        videos: path of a video, or paths; ids with `mode="features"`.
        console: for the results; by default nothing is printed.
        settings: options of `vtnpipe predict`.

    Raises:
        VtnpipeError: model, features or a setting is invalid.

    Examples:
        >>> report = vtnpipe.predict("run", ["a.mp4", "b.mkv"])  # doctest: +SKIP
        >>> report.to_pandas()  # doctest: +SKIP
    """
    chosen = _settings(PredictSettings, settings)
    paths = [videos] if isinstance(videos, str | os.PathLike) else videos
    return run_predict(Path(model), [str(path) for path in paths], chosen, console=console)


def _settings(kind: type[S], values: dict[str, Any]) -> S:
    """Create settings from keywords.

    Raises:
        SettingsError: a keyword is unknown, or a value is invalid.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise SettingsError(f"{name}={values[name]!r}: no such setting; {hint}")
    return kind(**values)


def _folder(features: StrPath | FeatureStore) -> Path:
    return features.folder.root if isinstance(features, FeatureStore) else Path(features)


def _manifest_of(
    videos: StrPath | Sequence[VideoRow] | Sequence[StrPath], features: Path, console: Console
) -> Path:
    """Return the manifest of videos, written beside the feature folder unless it is one."""
    path = features.with_name(f"{features.name}.csv")
    if isinstance(videos, str | os.PathLike):
        if not Path(videos).is_dir():
            return Path(videos)
        say(console, *build_manifest([Path(videos)], path).lines)
        return path
    rows = [one if isinstance(one, VideoRow) else _row(Path(one)) for one in videos]
    ids = {row.video_id for row in rows}
    if len(ids) < len(rows):
        twice = next(one for one in sorted(ids) if sum(row.video_id == one for row in rows) > 1)
        raise SettingsError(
            f"videos: two files are named {twice!r}; give rows (vtnpipe.VideoRow) with ids of your "
            "own"
        )
    write_manifest(rows, path)
    return path


def _row(path: Path) -> VideoRow:
    return VideoRow(video_id=path.name, path=str(path.absolute()))

"""`vtnpipe predict`: classify videos, in each of VTN's three modes of inference.

end-to-end  every frame through backbone and temporal model in one pass
chunked     the backbone in chunks of frames, then the temporal model once over all of them
features    stored features; only the temporal model runs
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
from rich.console import Console
from torch import Tensor

from ..extract.cores import num_cpus_per_process
from ..extract.decode.frames import Decoder
from ..extract.decode.protocol import DecodeRequest
from ..extract.decode.sampling import Sampling
from ..extract.device import resolve_device
from ..manifests.atomic import atomic_text
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, FeaturesError, SettingsError
from ..manifests.feature_store import open_features
from ..manifests.segments import Segment
from ..manifests.tabular import Tabular
from ..temporal.checkpoint import RunFolder
from ..temporal.config import FRAME_TASKS, TaskType
from ..temporal.distributed import accelerated
from ..temporal.segmentation import Method
from ..temporal.tasks import decision, probabilities
from .console import say
from .inference.evaluation import logits_of_features
from .inference.segmentation import (
    SegmentedVideo,
    check_segments_output,
    decoding_of,
    decoding_setting,
    frame_logits_of_features,
    min_seconds_setting,
    segment_line,
    segment_video,
    transition_cost_setting,
    write_segments_output,
)
from .inference.video_classifier import VideoClassifier, VideoToClassify
from .models.model_folder import NetworkConfig, check_features, read_config
from .models.network import VideoTransformerNetwork, load_temporal
from .options import settings_options
from .settings import (
    at_least,
    check_output,
    check_settings,
    check_unset,
    chunk_frames_setting,
    decoder_setting,
    device_setting,
    setting,
)

Mode = Literal["end-to-end", "chunked", "features"]


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Settings of `vtnpipe predict`."""

    mode: Mode = setting(
        "chunked",
        help="chunked: the backbone in chunks of frames; end-to-end: all frames of a video in "
        "memory; features: stored features, with --features.",
    )
    features: str | None = setting(
        None,
        help="Feature folder, for --mode features; VIDEOs are then ids, by default all.",
        metavar="FOLDER",
    )
    chunk_frames: int = chunk_frames_setting()
    top: int = setting(5, help="Classes to print per video.", check=at_least(1))
    output: str | None = setting(
        None,
        help="Also write a CSV: video, predicted, note, and each class's probability. For a task "
        "on frames, segments: .csv, .json (ActivityNet's), .txt (Audacity's) or a folder of those.",
        short="-o",
        metavar="FILE",
    )
    decoding: Method = decoding_setting()
    transition_cost: float = transition_cost_setting()
    min_seconds: float = min_seconds_setting()
    decoder: Decoder = decoder_setting()
    device: str = device_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        decoding_of(self)  # raises
        if (self.mode == "features") != (self.features is not None):
            raise SettingsError(
                f"--mode {self.mode} with --features {self.features}: --mode features needs "
                "--features FOLDER, and the other modes take none"
            )
        if self.mode != "chunked":
            check_unset(self, ["chunk_frames"], f"--mode {self.mode} has no chunks")
        if self.mode == "features":
            check_unset(self, ["decoder"], "--mode features decodes nothing")


class Prediction(NamedTuple):
    """Prediction for one video.

    Attributes:
        video: path or id.
        logits: [C], or [T, C] of a task on frames; None if nothing could be decoded.
        note: why there are no logits, or which frames are missing, or "".
        segments: segments of a task on frames, by their start.
    """

    video: str
    logits: Tensor | None
    note: str = ""
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PredictReport(Tabular):
    """Predictions, in the order of the videos; a table of videos or, of a task on frames, segments.

    Attributes:
        predictions: prediction for each video.
        class_names: names of the classes.
        task: task of the model.
    """

    predictions: list[Prediction]
    class_names: list[str]
    task: TaskType

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield a row per video, with the probability of each class; or a row per segment."""
        for video, logits, note, segments in self.predictions:
            if self.task in FRAME_TASKS:
                for one in segments:
                    yield {"video": video, "start": one.start, "end": one.end, "label": one.label}
                continue
            row: dict[str, Any] = {"video": video, "predicted": None, "note": note}
            shares: list[float | None] = [None] * len(self.class_names)
            if logits is not None:
                row["predicted"] = decision(logits, self.class_names, self.task)
                shares = probabilities(logits, self.task).tolist()
            yield {**row, **dict(zip(self.class_names, shares, strict=True))}

    @property
    def exit_code(self) -> int:
        """1 if a video failed or is partial."""
        is_complete = all(p.logits is not None and not p.note for p in self.predictions)
        return EXIT_OK if is_complete else EXIT_WITH_FAILURES


def predict(
    model: str | Path,
    videos: Sequence[str | Path],
    settings: PredictSettings | None = None,
    *,
    console: Console | None = None,
) -> PredictReport:
    """Classify videos.

    Args:
        model: model or run folder.
        videos: paths, or ids with `mode="features"`; no ids mean all.
        settings: by default `PredictSettings()`.
        console: for the results; by default nothing is printed.

    Raises:
        VtnpipeError: model, features or a setting is invalid.
    """
    settings = settings or PredictSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    if not videos and settings.mode != "features":
        raise SettingsError(f"--mode {settings.mode}: give at least one VIDEO")
    names = [str(video) for video in videos]
    config = read_config(RunFolder(Path(model)))
    output = None if settings.output is None else Path(settings.output)
    if not config.temporal.is_per_frame:
        options = ["decoding", "transition_cost", "min_seconds"]
        check_unset(settings, options, f"{model} is for {config.temporal.task}, not for frames")
    elif output is not None:
        check_segments_output(output, len(names) or None)
    if output is not None and not (config.temporal.is_per_frame and output.is_dir()):
        check_output(output)
    if settings.features is not None:
        found = _from_features(RunFolder(Path(model)), config, names, settings, device)
    else:
        network = VideoTransformerNetwork.from_pretrained(Path(model)).to(device)
        found = _from_videos(network, names, settings)
    predictions = []
    for prediction in found:
        _print(prediction, config, settings.top, console)
        predictions.append(prediction)
    if output is not None and config.temporal.is_per_frame:
        segments = {one.video: list(one.segments) for one in predictions if one.logits is not None}
        write_segments_output(output, segments)
    elif output is not None:
        _write(predictions, config, output)
    return PredictReport(
        predictions=predictions, class_names=config.class_names, task=config.temporal.task
    )


def _from_features(
    files: RunFolder,
    config: NetworkConfig,
    ids: Sequence[str],
    settings: PredictSettings,
    device: str,
) -> Iterator[Prediction]:
    features = settings.features or ""
    store = open_features(features)
    check_features(config, store.spec, store.folder.root)
    for video_id in ids:
        if video_id not in store.entries:
            raise FeaturesError(f"{features}: has no video_id {video_id!r}; see its manifest.csv")
    fps = config.temporal.position_fps
    with accelerated(device, "float32") as accelerator:
        temporal = accelerator.prepare_model(load_temporal(files, config), evaluation_mode=True)
        chosen = ids or list(store.entries)
        stored = [video_id for video_id in dict.fromkeys(chosen) if video_id in store]
        of_frames: dict[str, SegmentedVideo] = {}
        logits: dict[str, Tensor] = {}
        if stored and config.temporal.is_per_frame:
            videos = frame_logits_of_features(
                temporal, store, stored, config=config.temporal, accelerator=accelerator
            )
            of_frames = {one.video_id: one for one in videos}
            logits = {name: one.logits for name, one in of_frames.items()}
        elif stored:
            found = logits_of_features(
                temporal, store, stored, position_fps=fps, accelerator=accelerator
            )
            logits = dict(zip(stored, found, strict=True))
    for video_id in chosen:
        parts = store.entries[video_id]
        if video_id in logits:
            messages = [part.message for part in parts if part.status != "ok"]
            note = messages[0] if messages else ""
            of_frame = of_frames.get(video_id)
            yield _prediction(video_id, logits[video_id], of_frame, note, config, settings)
        else:
            yield Prediction(video_id, None, f"{parts[0].reason}: {parts[0].message}")


def _from_videos(
    network: VideoTransformerNetwork, paths: Sequence[str], settings: PredictSettings
) -> Iterator[Prediction]:
    sampling = Sampling.from_spec(network.config.spec)
    videos = []
    for path in paths:
        request = DecodeRequest(
            str(Path(path).absolute()), sampling=sampling, decoder=settings.decoder
        )
        videos.append(VideoToClassify(path, [[request]]))
    classify = VideoClassifier(
        network=network,
        mode="end-to-end" if settings.mode == "end-to-end" else "chunked",
        chunk_frames=settings.chunk_frames,
        num_decoder_processes=num_cpus_per_process(),
    )
    for found in classify(videos):
        note = found.fault if found.logits is None else found.outcome.message
        of_frames = None
        if found.logits is not None and found.times is not None and found.frame_index is not None:
            of_frames = SegmentedVideo(found.name, found.logits, found.times, found.frame_index)
        yield _prediction(found.name, found.logits, of_frames, note, network.config, settings)


def _prediction(
    video: str,
    logits: Tensor | None,
    of_frames: SegmentedVideo | None,
    note: str,
    config: NetworkConfig,
    settings: PredictSettings,
) -> Prediction:
    """Return the prediction for a video; none if its logits are not finite."""
    if logits is not None and not logits.isfinite().all():
        return Prediction(video, None, "its logits are not finite: the model's weights are broken")
    if logits is None or of_frames is None or not config.temporal.is_per_frame:
        return Prediction(video, logits, note)
    _, segments = segment_video(
        of_frames, config.class_names, config.temporal, decoding_of(settings)
    )
    return Prediction(video, logits, note, tuple(segments))


def _print(prediction: Prediction, config: NetworkConfig, top: int, console: Console) -> None:
    note = f"  ({prediction.note})" if prediction.note else ""
    say(console, f"{prediction.video}{note}")
    logits, task, classes = prediction.logits, config.temporal.task, config.class_names
    if logits is None:
        return
    if config.temporal.is_per_frame:
        lines = [segment_line(one) for one in prediction.segments]
        say(console, *(lines or ["  no segment"]))
        return
    if task == "regression":
        say(console, f"  {decision(logits, classes, task)}")
    shares = probabilities(logits, task)
    for index in shares.argsort(descending=True)[:top].tolist():
        say(console, f"  {float(shares[index]):6.1%}  {classes[index]}")


def _write(predictions: list[Prediction], config: NetworkConfig, path: Path) -> None:
    """Write one line per video, failed ones included: prediction, note, probabilities."""
    task, classes = config.temporal.task, config.class_names
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video", "predicted", "note", *classes))
        for video, logits, note, _ in predictions:
            if logits is None:
                writer.writerow((video, "", note, *("" for _ in classes)))
                continue
            shares = [f"{p:.6f}" for p in probabilities(logits, task).tolist()]
            writer.writerow((video, decision(logits, classes, task), note, *shares))


@click.command("predict")
@click.argument("model")
@click.argument("video", nargs=-1)
@settings_options(PredictSettings)
def command(model: str, video: tuple[str, ...], console: Console, **options: Any) -> int:
    """Classify each VIDEO with MODEL, a model or run folder."""
    return predict(model, video, PredictSettings(**options), console=console).exit_code

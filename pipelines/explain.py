"""`vtnpipe explain`: attention in one video, and how the prediction depends on parts of it."""

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from ..extract.decode.frames import Decoder, Outcome
from ..extract.decode.protocol import DecodeRequest
from ..extract.decode.sampling import Sampling
from ..extract.device import resolve_device
from ..manifests.errors import SettingsError
from ..manifests.failures import VideoError
from ..manifests.manifest import VideoRow
from ..temporal.checkpoint import RunFolder
from ..temporal.clips import Windows
from ..temporal.inference import (
    even_spans,
    logits_without,
    prefix_logits,
    video_frame_logits,
)
from ..temporal.segmentation import VITERBI
from ..temporal.tasks import log_odds, probabilities
from .console import CountProgress, say
from .html.attention import video_attention
from .html.explain_figure import write_figure
from .html.explain_page import Explanation, occlusion_lines, write_explanation
from .html.thumbnails import ThumbnailRequest, decode_thumbnails, even_positions
from .html.timeline import timeline
from .inference.segmentation import SegmentedVideo, segment_line, segment_video
from .inference.video_classifier import VideoFeatures, extract_features
from .models.model_folder import read_config
from .models.network import VideoTransformerNetwork
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

FORMATS = (".html", ".png")
DEFAULT_PREFIXES, DEFAULT_OCCLUSIONS = 40, 250
MIN_PASSES = 10  # smallest default number of prefixes or occlusions
MAX_TOKENS = 1_000_000  # that all default prefixes, or occlusions, of a video may have together
THUMBNAIL_HEIGHT = 132  # pixels


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """Settings of `vtnpipe explain`."""

    output: str | None = setting(
        None,
        help="Page or figure to write, .html or .png; by default none.",
        short="-o",
        metavar="FILE",
    )
    start: float | None = setting(None, help="Start of the part to explain, in seconds.")
    end: float | None = setting(
        None, help="End of that part, in seconds; by default the end of the video."
    )
    frames: int = setting(12, help="Number of thumbnails along the video.", check=at_least(1))
    most: int = setting(6, help="Number of most attended frames to show.", check=at_least(1))
    top: int = setting(5, help="Number of most probable classes to show.", check=at_least(1))
    prefixes: int | None = setting(
        None,
        help="Number of beginnings of the video, evenly spaced, to predict from; by default 40, "
        "fewer for hours of video.",
        check=at_least(1),
    )
    occlusions: int | None = setting(
        None,
        help="Number of parts to hide, one at a time; at most one per frame. By default 250, fewer "
        "for hours of video.",
        check=at_least(2),
    )
    chunk_frames: int = chunk_frames_setting()
    decoder: Decoder = decoder_setting()
    device: str = device_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        begin, end = self.start or 0.0, math.inf if self.end is None else self.end
        if not 0 <= begin < end:
            raise SettingsError(
                f"--start {self.start} --end {self.end}: a span must begin at 0 or later, and end "
                "after its beginning"
            )
        if self.output is not None and Path(self.output).suffix not in FORMATS:
            raise SettingsError(f"--output {self.output}: its name must end in .html or .png")
        if self.output is None:
            check_unset(self, ["frames"], "has no effect without --output")


def explain(
    model: str | Path,
    video: str | Path,
    settings: ExplainSettings | None = None,
    *,
    console: Console | None = None,
) -> Explanation:
    """Explain a model's prediction for one video by attention, prefixes and occlusions.

    Logits and attention are the mean over the views, as in `predict`.

    Args:
        model: model or run folder.
        video: path of the video.
        settings: by default `ExplainSettings()`.
        console: for a summary; by default nothing is printed.

    Raises:
        VtnpipeError: model or a setting is invalid, or no frame can be decoded.
    """
    settings = settings or ExplainSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    output = None if settings.output is None else check_output(Path(settings.output))
    if read_config(RunFolder(Path(model))).temporal.is_per_frame:
        _check_frame_settings(settings, Path(model), output)
    network = VideoTransformerNetwork.from_pretrained(Path(model)).to(device)
    path = str(Path(video).absolute())
    name = os.fsencode(Path(video).name).decode(errors="replace")
    row = VideoRow(video_id=name, path=path, start=settings.start, end=settings.end)
    sampling = Sampling.from_spec(network.config.spec)
    request = DecodeRequest(path, row.start, row.end, sampling, decoder=settings.decoder)
    (piece,) = extract_features(network, [request], chunk_frames=settings.chunk_frames)
    if not len(piece.timestamps):
        raise VideoError(piece.outcome.reason or "no-frames", piece.outcome.message)
    explain_one = _explain_frames if network.config.temporal.is_per_frame else _explain
    explanation = explain_one(network, piece.features.to(device), piece.outcome, settings, console)
    if output is not None:
        _write(output, explanation, network, row, settings, console)
        say(console, f"{output}: {output.stat().st_size / 2**20:,.1f} MiB")
    return explanation


def _explain(
    network: VideoTransformerNetwork,
    video: VideoFeatures,
    outcome: Outcome,
    settings: ExplainSettings,
    console: Console,
) -> Explanation:
    """Compute prediction and attention and print them, then prefixes and occlusions."""
    config, temporal = network.config, network.temporal
    task, num_frames = config.temporal.task, len(video.timestamps)
    names = config.class_names or ["value"]
    positions = video.positions(config.temporal.position_fps)

    def scores_of(logits: torch.Tensor) -> torch.Tensor:
        return logits if task == "regression" else probabilities(logits, task)

    (whole,) = prefix_logits(temporal, video.features, positions, [num_frames])
    whole = whole.double().cpu()
    explanation = Explanation(
        task=task,
        class_names=names,
        top_class=int(whole.argmax()),
        scores=scores_of(whole),
        outcome=outcome,
        timestamps=video.timestamps,
        frame_index=video.frame_index,
        attention=video_attention(temporal, video),
    )
    _print_prediction(explanation, settings, console)
    num_occlusions = settings.occlusions or _num_passes(DEFAULT_OCCLUSIONS, num_frames)
    num_prefixes = settings.prefixes or _num_passes(DEFAULT_PREFIXES, num_frames)
    spans = even_spans(num_frames, num_occlusions)
    lengths = [stop for _, stop in even_spans(num_frames, num_prefixes)]
    of_prefixes: list[torch.Tensor] = []
    without_spans: list[torch.Tensor] = []
    with CountProgress("explain", "passes", len(lengths) + len(spans), console) as progress:
        for results, passes in (
            (of_prefixes, prefix_logits(temporal, video.features, positions, lengths)),
            (without_spans, logits_without(temporal, video.features, positions, spans)),
        ):
            for logits in passes:
                results.append(logits.double().cpu())
                progress.count()
    top_class, hidden = explanation.top_class, torch.stack(without_spans)
    drops = log_odds(whole, top_class, task) - log_odds(hidden, top_class, task)
    ends = [float(video.timestamps[length - 1]) for length in lengths]
    explanation = replace(
        explanation,
        prefixes=list(zip(ends, scores_of(torch.stack(of_prefixes)), strict=True)),
        spans=spans,
        drops=drops.numpy(),
    )
    say(console, *(f"  {line}" for line in occlusion_lines(explanation)))
    return explanation


def _check_frame_settings(settings: ExplainSettings, model: Path, output: Path | None) -> None:
    """Refuse settings that have no meaning for a task on frames.

    Raises:
        SettingsError: names the setting.
    """
    check_unset(settings, ["prefixes", "occlusions", "top"], f"{model} segments videos")
    if output is not None and output.suffix != ".html":
        raise SettingsError(
            f"--output {output}: {model} segments videos; its name must end in .html"
        )


@torch.inference_mode()
def _explain_frames(
    network: VideoTransformerNetwork,
    video: VideoFeatures,
    outcome: Outcome,
    settings: ExplainSettings,
    console: Console,
) -> Explanation:
    """Compute the segments of a video and the attention of [CLS], and print them."""
    config, temporal = network.config, network.temporal
    positions = partial(video.positions, config.temporal.position_fps)
    window_frames = config.temporal.window_frames
    windows = Windows(num_frames=window_frames)
    logits = video_frame_logits(temporal, video.features, positions, windows)
    is_one_pass = window_frames is None or len(logits) <= window_frames
    of_frames = SegmentedVideo("", logits, video.timestamps, video.frame_index)
    labels, segments = segment_video(of_frames, config.class_names, config.temporal, VITERBI)
    explanation = Explanation(
        task=config.temporal.task,
        class_names=config.class_names,
        top_class=0,
        scores=probabilities(logits, config.temporal.task).mean(0),
        outcome=outcome,
        timestamps=video.timestamps,
        frame_index=video.frame_index,
        # That of windows has no common scale.
        attention=video_attention(temporal, video) if is_one_pass else None,
        segments=segments,
        timeline=timeline(
            "Prediction",
            labels,
            video.timestamps,
            config.class_names,
            config.temporal.background_class,
        ),
    )
    if outcome.status != "ok":
        say(console, f"partial: {outcome.reason}: {outcome.message}")
    say(console, *map(segment_line, segments))
    return explanation


def _num_passes(default: int, num_frames: int) -> int:
    """Return the default number of prefixes or occlusions, which is smaller for long videos."""
    return max(MIN_PASSES, min(default, MAX_TOKENS // num_frames))


def _print_prediction(
    explanation: Explanation, settings: ExplainSettings, console: Console
) -> None:
    outcome = explanation.outcome
    if outcome.status != "ok":
        say(console, f"partial: {outcome.reason}: {outcome.message}")
    for index in explanation.scores.argsort(descending=True)[: settings.top].tolist():
        score, name = float(explanation.scores[index]), explanation.class_names[index]
        text = f"{score:.6g}" if explanation.task == "regression" else f"{score:.1%}"
        say(console, f"  {text:>7}  {name}")
    for position, share in explanation.most_attended(settings.most):
        frame, seconds = explanation.frame_index[position], explanation.timestamps[position]
        say(console, f"  attention {share:6.2%} to frame {frame}, at {seconds:.2f} s")


def _write(
    output: Path,
    explanation: Explanation,
    network: VideoTransformerNetwork,
    row: VideoRow,
    settings: ExplainSettings,
    console: Console,
) -> None:
    """Write the page or the figure."""
    along = even_positions(explanation.timestamps, settings.frames)
    most = [position for position, _ in explanation.most_attended(settings.most)]
    request = ThumbnailRequest.of(
        row, along + most, explanation.frame_index, explanation.timestamps
    )
    (decoded,) = decode_thumbnails({row.video_id: request}, height=THUMBNAIL_HEIGHT).values()
    strip, attended = decoded.thumbnails[: len(along)], decoded.thumbnails[len(along) :]
    if output.suffix == ".png":
        has_all_letters = write_figure(output, row.video_id, explanation, strip, settings.top)
        if not has_all_letters:
            say(console, f"{output}: its font lacks letters of some names; an .html page shows all")
        return
    write_explanation(
        output,
        network.config,
        row.video_id,
        explanation,
        strip,
        attended,
        decoded.note,
        top=settings.top,
        most=settings.most,
    )


@click.command("explain")
@click.argument("model")
@click.argument("video")
@settings_options(ExplainSettings)
def command(model: str, video: str, console: Console, **options: Any) -> int:
    """Show what MODEL attends to in the file VIDEO, and what its prediction depends on.

    Parts are hidden one at a time, to check whether the prediction changes where attention is high.
    """
    return explain(model, video, ExplainSettings(**options), console=console).exit_code

"""`vtnpipe explain`: what a model attends to in one video, and what its prediction depends on."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from ..extract.decode.frames import Decoder, Outcome
from ..extract.decode.protocol import DecodeRequest
from ..extract.decode.sampling import Sampling
from ..extract.device import resolve_device
from ..manifests.errors import SettingsError, VideoError
from ..manifests.manifest import VideoRow
from ..temporal.inference import even_spans, logits_without, prefix_logits
from ..temporal.tasks import log_odds, probabilities
from .console import CountProgress, say
from .html.attention import attention_of
from .html.explain_figure import write_figure
from .html.explain_page import Explanation, check_lines, write_explanation
from .html.thumbnails import Wanted, even_places, thumbnails
from .inference.video_classifier import VideoFeatures, extract_features
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
MIN_PASSES = 10  # prefixes and occlusions, however long a video is
MAX_TOKENS = 1_000_000  # that all passes of a kind may see, unless they are asked for
LARGE_HEIGHT = 132  # of the most attended frames' pictures


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """The settings of `vtnpipe explain`."""

    output: str | None = setting(
        None,
        help="A page or picture to write, .html or .png; by default none.",
        short="-o",
        metavar="FILE",
    )
    start: float | None = setting(None, help="Second at which the part to explain begins.")
    end: float | None = setting(None, help="Second at which it ends; by default the video's end.")
    frames: int = setting(12, help="Pictures along the video.", check=at_least(1))
    most: int = setting(6, help="Most attended frames to show.", check=at_least(1))
    top: int = setting(5, help="Classes to follow.", check=at_least(1))
    prefixes: int | None = setting(
        None,
        help="Beginnings of the video, evenly, to predict from; by default 40, fewer for hours.",
        check=at_least(1),
    )
    occlusions: int | None = setting(
        None,
        help="Parts to hide, one at a time; as many as frames, or more, hides each frame. By "
        "default 250, fewer for hours.",
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
                "after it begins"
            )
        if self.output is not None and Path(self.output).suffix not in FORMATS:
            raise SettingsError(f"--output {self.output}: its name must end in .html or .png")
        if self.output is None:
            check_unset(self, ["frames"], "without --output there are no pictures")


def explain(
    model: str | Path,
    video: str | Path,
    settings: ExplainSettings | None = None,
    *,
    console: Console | None = None,
) -> Explanation:
    """Says what a model attends to in one video, and what its answer depends on.

    Of several views, logits and attention are averaged, as `predict` does.

    Args:
        model: a model or run folder.
        video: a file.
        settings: by default, `ExplainSettings()`.
        console: for it in words; by default, nothing is printed.

    Raises:
        VtnpipeError: model or a setting breaks a rule, or no frame can be decoded.
    """
    settings = settings or ExplainSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    output = None if settings.output is None else check_output(Path(settings.output))
    network = VideoTransformerNetwork.from_pretrained(Path(model)).to(device)
    path = str(Path(video).absolute())
    name = os.fsencode(Path(video).name).decode(errors="replace")
    row = VideoRow(video_id=name, path=path, start=settings.start, end=settings.end)
    sampling = Sampling.from_spec(network.config.spec)
    request = DecodeRequest(path, row.start, row.end, sampling, decoder=settings.decoder)
    (piece,) = extract_features(network, [request], chunk_frames=settings.chunk_frames)
    if not len(piece.timestamps):
        raise VideoError(piece.outcome.reason or "no-frames", piece.outcome.message)
    found = _look(network, piece.features.to(device), piece.outcome, settings, console)
    if output is not None:
        _write(output, found, network, row, settings, console)
        say(console, f"{output}: {output.stat().st_size / 2**20:,.1f} MiB")
    return found


def _look(
    network: VideoTransformerNetwork,
    seen: VideoFeatures,
    outcome: Outcome,
    settings: ExplainSettings,
    console: Console,
) -> Explanation:
    """The answer and attention, which are said at once; then prefixes and occlusions."""
    config, temporal = network.config, network.temporal
    task, num_frames = config.temporal.task, len(seen.timestamps)
    names = config.class_names or ["value"]
    positions = seen.positions(config.temporal.position_fps)

    def scores_of(logits: torch.Tensor) -> torch.Tensor:
        return logits if task == "regression" else probabilities(logits, task)

    (whole,) = prefix_logits(temporal, seen.features, positions, [num_frames])
    whole = whole.double().cpu()
    found = Explanation(
        task=task,
        class_names=names,
        first=int(whole.argmax()),
        scores=scores_of(whole),
        outcome=outcome,
        timestamps=seen.timestamps,
        frame_index=seen.frame_index,
        attention=attention_of(temporal, seen),
    )
    _print_answer(found, settings, console)
    spans = even_spans(num_frames, settings.occlusions or _affordable(250, num_frames))
    lengths = [
        stop for _, stop in even_spans(num_frames, settings.prefixes or _affordable(40, num_frames))
    ]
    before: list[torch.Tensor] = []
    without: list[torch.Tensor] = []
    with CountProgress("explain", "passes", len(lengths) + len(spans), console) as progress:
        for results, passes in (
            (before, prefix_logits(temporal, seen.features, positions, lengths)),
            (without, logits_without(temporal, seen.features, positions, spans)),
        ):
            for logits in passes:
                results.append(logits.double().cpu())
                progress.count()
    drops = log_odds(whole, found.first, task) - log_odds(torch.stack(without), found.first, task)
    ends = [float(seen.timestamps[length - 1]) for length in lengths]
    found = replace(
        found,
        prefixes=list(zip(ends, scores_of(torch.stack(before)), strict=True)),
        spans=spans,
        drops=drops.numpy(),
    )
    say(console, *(f"  {line}" for line in check_lines(found)))
    return found


def _affordable(most: int, num_frames: int) -> int:
    """How many passes over a video are made: as many as are wanted, but fewer for hours."""
    return max(MIN_PASSES, min(most, MAX_TOKENS // num_frames))


def _print_answer(found: Explanation, settings: ExplainSettings, console: Console) -> None:
    if found.outcome.status != "ok":
        say(console, f"partial: {found.outcome.reason}: {found.outcome.message}")
    for index in found.scores.argsort(descending=True)[: settings.top].tolist():
        say(console, f"  {_score_text(found, index):>7}  {found.class_names[index]}")
    for place, share in found.most_attended(settings.most):
        seconds, rank = found.timestamps[place], found.frame_index[place]
        say(console, f"  attends {share:6.2%} to frame {rank}, at {seconds:.2f} s")


def _score_text(found: Explanation, index: int) -> str:
    value = float(found.scores[index])
    return f"{value:.6g}" if found.task == "regression" else f"{value:.1%}"


def _write(
    output: Path,
    found: Explanation,
    network: VideoTransformerNetwork,
    row: VideoRow,
    settings: ExplainSettings,
    console: Console,
) -> None:
    """The page, or the picture."""
    along = even_places(found.timestamps, settings.frames)
    most = [place for place, _ in found.most_attended(settings.most)]
    wanted = Wanted.of(row, along + most, found.frame_index, found.timestamps)
    (pictures,) = thumbnails({row.video_id: wanted}, height=LARGE_HEIGHT).values()
    strip, attended = pictures.thumbnails[: len(along)], pictures.thumbnails[len(along) :]
    if output.suffix == ".png":
        has_all_letters = write_figure(output, row.video_id, found, strip, settings.top)
        if not has_all_letters:
            say(console, "some letters of names are not in the picture's font; .html has all")
        return
    write_explanation(
        output,
        network.config,
        row.video_id,
        found,
        strip,
        attended,
        pictures.note,
        top=settings.top,
        most=settings.most,
    )


@click.command("explain")
@click.argument("model")
@click.argument("video")
@settings_options(ExplainSettings)
def command(model: str, video: str, console: Console, **options: Any) -> int:
    """Show what MODEL attends to in the file VIDEO, and what its prediction depends on.

    Hiding one part at a time checks the attention: does the prediction change where it is high?
    """
    return explain(model, video, ExplainSettings(**options), console=console).exit_code

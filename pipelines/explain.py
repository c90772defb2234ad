"""`vtnpipe explain`: what a model attends to in one video, and does its answer depend on that?"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from ..extract.choices import Decoder
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, SettingsError, VideoError
from . import common_settings
from .console import CountProgress, say
from .settings import at_least, check_output, check_settings, check_unset, setting

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from ..extract.decode.frames import Outcome
    from ..manifests.manifest import VideoRow
    from ..temporal.choices import Task
    from .html.attention import Attention, SeenVideo
    from .models.network import VideoTransformerNetwork

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
    chunk_frames: int = common_settings.chunk_frames()
    decoder: Decoder = common_settings.decoder()
    device: str = common_settings.device()

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Of a model's answer about one video of T frames.

    Attributes:
        task: of the model.
        class_names: [C], or the name of what a regression gives.
        first: the class of the highest logit.
        scores: [C] probabilities; of regression the number.
        outcome: of decoding.
        timestamps: [T] seconds.
        frame_index: [T].
        attention: of [CLS]; None where the model has none.
        prefixes: [(seconds seen, scores [C])], the whole video last.
        spans: [S] of frames that were hidden, half open.
        drops: [S], by how much the first class's log-odds fall without them; of regression, the
            value.
    """

    task: "Task"
    class_names: Sequence[str]
    first: int
    scores: "Tensor"
    outcome: "Outcome"
    timestamps: "npt.NDArray[np.float64]"
    frame_index: "npt.NDArray[np.int64]"
    attention: "Attention | None"
    prefixes: "list[tuple[float, Tensor]]" = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    drops: "npt.NDArray[np.float64]" = field(default_factory=lambda: np.empty(0))

    @property
    def agreement(self) -> float | None:
        """Rank correlation (Spearman) of attention and drops, over the spans; None where there is
        no attention, or one of the two is the same everywhere, or for fewer than three spans.
        """
        import torch
        from torchmetrics.functional import spearman_corrcoef

        if self.attention is None or len(self.spans) < 3:
            return None
        starts = [begin for begin, _ in self.spans]
        weights = np.add.reduceat(self.attention.frames[-1].mean(0), starts)
        if np.ptp(weights) == 0 or np.ptp(self.drops) == 0:
            return None
        return float(spearman_corrcoef(torch.from_numpy(weights), torch.from_numpy(self.drops)))

    @property
    def drop_unit(self) -> str:
        """Of what hiding frames changes."""
        return "value" if self.task == "regression" else "log-odds"

    @property
    def exit_code(self) -> int:
        """1 where the video is partial."""
        return EXIT_OK if self.outcome.status == "ok" else EXIT_WITH_FAILURES

    def most_attended(self, count: int) -> list[tuple[int, float]]:
        """Places and attention of the frames that the last layer attends to most, in order of
        time: the mean over its heads.
        """
        if self.attention is None:
            return []
        weights = self.attention.frames[-1].mean(0)
        places = sorted((-weights).argsort(kind="stable")[:count].tolist())
        return [(place, float(weights[place])) for place in places]


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
    from ..extract.decode.protocol import Decode
    from ..extract.decode.sampling import Sampling
    from ..extract.device import resolve_device
    from ..manifests.manifest import VideoRow
    from .inference.video_classifier import video_features
    from .models.network import VideoTransformerNetwork

    settings = settings or ExplainSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    output = None if settings.output is None else check_output(Path(settings.output))
    network = VideoTransformerNetwork.from_pretrained(Path(model)).to(device)
    path = str(Path(video).absolute())
    name = os.fsencode(Path(video).name).decode(errors="replace")
    row = VideoRow(video_id=name, path=path, start=settings.start, end=settings.end)
    sampling = Sampling.from_identity(network.config.identity)
    request = Decode(path, row.start, row.end, sampling, decoder=settings.decoder)
    (piece,) = video_features(network, [request], chunk_frames=settings.chunk_frames)
    if not len(piece.times):
        raise VideoError(piece.outcome.reason or "no-frames", piece.outcome.message)
    found = _look(network, piece.seen.to(device), piece.outcome, settings, console)
    if output is not None:
        _write(output, found, network, row, settings, console)
        say(console, f"{output}: {output.stat().st_size / 2**20:,.1f} MiB")
    return found


def _look(
    network: "VideoTransformerNetwork",
    seen: "SeenVideo",
    outcome: "Outcome",
    settings: ExplainSettings,
    console: Console,
) -> Explanation:
    """The answer and attention, which are said at once; then prefixes and occlusions."""
    import torch

    from ..temporal.explain import even_spans, logits_without, prefix_logits
    from ..temporal.tasks import log_odds, probabilities
    from .html.attention import attention_of

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


def check_lines(found: Explanation) -> list[str]:
    """What hiding frames tells."""
    name = found.class_names[found.first]
    most = int(found.drops.argmax())
    begin, stop = found.spans[most]
    frames = f"frame {found.frame_index[begin]}"
    if stop - begin > 1:
        frames = f"frames {found.frame_index[begin]} to {found.frame_index[stop - 1]}"
    line = (
        f"{name} falls most without {frames}, from {found.timestamps[begin]:.2f} s on: by "
        f"{found.drops[most]:.3g} in {found.drop_unit}"
    )
    if found.drops[most] <= 0:
        line = f"hiding any one of {len(found.spans):,} parts never makes {name} fall"
    if found.attention is None:
        return [line, "this model has no [CLS] that attends"]
    agreement = found.agreement
    if agreement is None:
        return [line, "too few parts, or too much alike, to compare with attention"]
    return [line, f"rank correlation of that with attention: {agreement:.2f}"]


def _score_text(found: Explanation, index: int) -> str:
    value = float(found.scores[index])
    return f"{value:.6g}" if found.task == "regression" else f"{value:.1%}"


def _write(
    output: Path,
    found: Explanation,
    network: "VideoTransformerNetwork",
    row: "VideoRow",
    settings: ExplainSettings,
    console: Console,
) -> None:
    """The page, or the picture."""
    from .html.thumbnails import Wanted, even_places, thumbnails

    along = even_places(found.timestamps, settings.frames)
    most = [place for place, _ in found.most_attended(settings.most)]
    wanted = Wanted.of(row, along + most, found.frame_index, found.timestamps)
    (pictures,) = thumbnails({row.video_id: wanted}, height=LARGE_HEIGHT).values()
    strip, attended = pictures.thumbnails[: len(along)], pictures.thumbnails[len(along) :]
    if output.suffix == ".png":
        from .html.explain_figure import write_figure

        has_all_letters = write_figure(output, row.video_id, found, strip, settings.top)
        if not has_all_letters:
            say(console, "some letters of names are not in the picture's font; .html has all")
        return
    from .html.explain_page import write_explanation

    write_explanation(
        output, network.config, row.video_id, found, strip, attended, pictures.note, settings
    )

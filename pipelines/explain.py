"""`vtnpipe explain`: what a model attends to in one video, and does its answer depend on that?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..extract.choices import Decoder
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, SettingsError, VideoError
from .options import at_least, check_settings, setting
from .progress import CountProgress, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from ..extract.frames import Outcome
    from ..manifests.videos import VideoRow
    from .network import VideoTransformerNetwork
    from .strips import Attention

FORMATS = (".html", ".png")
LARGE_HEIGHT = 132  # of the most attended frames' pictures


@dataclass(frozen=True, kw_only=True)
class ExplainSettings:
    """The settings of `vtnpipe explain`."""

    output: str | None = setting(
        None, help="The page or picture to write, .html or .png.", short="-o", metavar="FILE"
    )
    start: float | None = setting(None, help="Seconds, of the part of the video that is meant.")
    end: float | None = setting(None, help="Where it ends.")
    frames: int = setting(12, help="Pictures along the video.", check=at_least(1))
    most: int = setting(6, help="Most attended frames to show.", check=at_least(1))
    top: int = setting(5, help="Classes to follow.", check=at_least(1))
    prefixes: int = setting(
        40, help="Beginnings of the video, evenly, to predict from.", check=at_least(1)
    )
    occlusions: int = setting(
        250,
        help="Parts to hide, one at a time; as many as frames, or more, hides each frame.",
        check=at_least(1),
    )
    chunk_frames: int = setting(
        32, help="Frames that go through the backbone at once.", check=at_least(1)
    )
    decoder: Decoder = setting(
        "auto", help="auto: decord where it is known to be right, else PyAV."
    )
    device: str = setting("auto", help="Where to run.", metavar="auto|cpu|cuda|cuda:N")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.output is not None and Path(self.output).suffix not in FORMATS:
            raise SettingsError(f"--output {self.output}: its name must end in .html or .png")


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Of a model's answer about one video of T frames.

    Attributes:
        class_names: [C], or the name of what a regression gives.
        scores: [C] probabilities; of regression the number.
        outcome: of decoding.
        timestamps: [T] seconds.
        frame_index: [T].
        attention: of [CLS]; None where the model has none.
        prefixes: [(seconds seen, scores [C])], the whole video last.
        spans: [S] of frames that were hidden, half open.
        drops: [S], by how much the first class's log-odds fall without them; of regression, the
            value.
        agreement: rank correlation (Spearman) of attention and drops, over the spans; None without
            attention or for fewer than three spans.
    """

    class_names: Sequence[str]
    scores: "Tensor"
    outcome: "Outcome"
    timestamps: "npt.NDArray[np.float64]"
    frame_index: "npt.NDArray[np.int64]"
    attention: "Attention | None"
    prefixes: "list[tuple[float, Tensor]]"
    spans: list[tuple[int, int]]
    drops: "npt.NDArray[np.float64]"
    agreement: float | None

    @property
    def drop_unit(self) -> str:
        """Of what hiding frames changes."""
        return "value" if self.class_names == ["value"] else "log-odds"

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

    Args:
        model: a model or run folder.
        video: a file.
        settings: by default, `ExplainSettings()`.
        console: for it in words; by default, nothing is printed.

    Raises:
        VtnpipeError: model or a setting breaks a rule, or no frame can be decoded.
    """
    from ..extract.device import resolve_device
    from ..extract.requests import Decode
    from ..extract.sampling import Sampling
    from ..manifests.videos import VideoRow
    from .network import VideoTransformerNetwork
    from .video_inference import video_features

    settings = settings or ExplainSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    output = None if settings.output is None else Path(settings.output)
    if output is not None and not output.parent.is_dir():
        raise SettingsError(f"--output {output}: its folder is missing")
    network = VideoTransformerNetwork.from_pretrained(Path(model)).to(device)
    path = str(Path(video).absolute())
    row = VideoRow(video_id=Path(video).name, path=path, start=settings.start, end=settings.end)
    sampling = Sampling.from_identity(network.config.identity)
    request = Decode(path, row.start, row.end, sampling, decoder=settings.decoder)
    (piece,) = video_features(network, [request], chunk_frames=settings.chunk_frames)
    if not len(piece.times):
        raise VideoError(piece.outcome.reason or "no-frames", piece.outcome.message)
    found = _look(network, piece, settings, device, console)
    _print(found, settings, console)
    if output is not None:
        _write(output, found, network, row, settings)
        say(console, f"{output}: {output.stat().st_size / 2**20:,.1f} MiB")
    return found


def _look(
    network: "VideoTransformerNetwork",
    piece: Any,
    settings: ExplainSettings,
    device: str,
    console: Console,
) -> Explanation:
    """Attention, prefixes and occlusions, of the first view."""
    import numpy as np
    import torch
    from torchmetrics.functional import spearman_corrcoef

    from ..temporal.batch import frame_positions
    from ..temporal.explain import even_spans, logits_without, prefix_logits
    from ..temporal.tasks import log_odds, probabilities
    from .strips import attention_of

    config, temporal = network.config, network.temporal
    task = config.temporal.task

    features, times = piece.inputs[:, 0].to(device), piece.times
    places = frame_positions(times, piece.frame_index, position_fps=config.temporal.position_fps)
    positions = torch.from_numpy(places).to(device)
    spans = even_spans(len(times), settings.occlusions)
    lengths = [stop for _, stop in even_spans(len(times), settings.prefixes)]
    seen: list[torch.Tensor] = []
    without: list[torch.Tensor] = []
    with CountProgress("explain", "passes", len(lengths) + len(spans), console) as progress:
        for found, passes in (
            (seen, prefix_logits(temporal, features, positions, lengths)),
            (without, logits_without(temporal, features, positions, spans)),
        ):
            for logits in passes:
                found.append(logits.double().cpu())
                progress.count()
    first = int(seen[-1].argmax())
    drops = log_odds(seen[-1], first, task) - log_odds(torch.stack(without), first, task)
    scores = torch.stack(seen)
    scores = scores if task == "regression" else probabilities(scores, task)
    ends = [float(times[length - 1]) for length in lengths]
    attention = attention_of(temporal, features, times, piece.frame_index)
    agreement = None
    if attention is not None and len(spans) > 2:
        weights = np.add.reduceat(attention.frames[-1].mean(0), [begin for begin, _ in spans])
        agreement = float(spearman_corrcoef(torch.from_numpy(weights), drops))
    return Explanation(
        class_names=config.class_names or ["value"],
        scores=scores[-1],
        outcome=piece.outcome,
        timestamps=times,
        frame_index=piece.frame_index,
        attention=attention,
        prefixes=list(zip(ends, scores, strict=True)),
        spans=spans,
        drops=drops.numpy(),
        agreement=agreement,
    )


def _print(found: Explanation, settings: ExplainSettings, console: Console) -> None:
    if found.outcome.status != "ok":
        say(console, f"partial: {found.outcome.reason}: {found.outcome.message}")
    for index in found.scores.argsort(descending=True)[: settings.top].tolist():
        say(console, f"  {_score_text(found, index):>7}  {found.class_names[index]}")
    for place, share in found.most_attended(settings.most):
        seconds, rank = found.timestamps[place], found.frame_index[place]
        say(console, f"  attends {share:6.2%} to frame {rank}, at {seconds:.2f} s")
    for line in check_lines(found):
        say(console, f"  {line}")


def check_lines(found: Explanation) -> list[str]:
    """What hiding frames tells."""
    if not len(found.drops):
        return []
    most = int(found.drops.argmax())
    begin, stop = found.spans[most]
    name = found.class_names[int(found.scores.argmax())]
    frames = f"frame {found.frame_index[begin]}"
    if stop - begin > 1:
        frames = f"frames {found.frame_index[begin]} to {found.frame_index[stop - 1]}"
    lines = [
        f"{name} falls most without {frames}, from {found.timestamps[begin]:.2f} s on: by "
        f"{found.drops[most]:.3g} in {found.drop_unit}"
    ]
    if found.agreement is None:
        return lines if found.attention else [*lines, "this model has no [CLS] that attends"]
    return [*lines, f"rank correlation of that with attention: {found.agreement:.2f}"]


def _score_text(found: Explanation, index: int) -> str:
    value = float(found.scores[index])
    return f"{value:.6g}" if found.class_names == ["value"] else f"{value:.1%}"


def _write(
    output: Path,
    found: Explanation,
    network: "VideoTransformerNetwork",
    row: "VideoRow",
    settings: ExplainSettings,
) -> None:
    """The page, or the picture."""
    from .strips import even_ranks
    from .thumbnails import Wanted, thumbnails

    at = dict(zip(found.frame_index.tolist(), found.timestamps.tolist(), strict=True))
    along = even_ranks(found.timestamps, found.frame_index, settings.frames)
    most = [int(found.frame_index[place]) for place, _ in found.most_attended(settings.most)]
    (pictures,) = thumbnails(
        {row.video_id: Wanted(row, along + most, [at[rank] for rank in along + most])},
        height=LARGE_HEIGHT,
    ).values()
    strip, attended = pictures.thumbnails[: len(along)], pictures.thumbnails[len(along) :]
    if output.suffix == ".png":
        from .explain_figure import write_figure

        write_figure(output, row.video_id, found, strip, settings.top)
        return
    from .explain_page import write_explanation

    write_explanation(output, network.config, row.video_id, found, strip, attended, settings)

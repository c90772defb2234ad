"""Quick probes of the rows that are planned: their files' state, length and format."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

from ...extract.cores import num_cpus
from ...extract.decode.nvdec import format_refusal
from ...extract.decode.pool import DecoderPool
from ...extract.decode.protocol import QuickProbeRequest
from ...extract.decode.quick_probe import QuickProbe, estimated
from ...extract.decode.remote import check_allowed, is_url, remote_state
from ...extract.decode.sampling import Sampling
from ...manifests.atomic import FileState, file_state
from ...manifests.failures import VideoError
from ...manifests.image_sequences import split_rate
from ...manifests.manifest import VideoRow
from ...manifests.plan import PlannedRow
from .settings import ExtractSettings

PROCESSES_PER_CPU = 2  # for quick probes, which wait for the disk half of the time
LOOKUPS = 32  # objects that are looked up at the same time
MAX_PROPERTIES = 100  # values of each file property that a plan records


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbedRow:
    """A row with its quick probe.

    Attributes:
        row: the row, with its number of wanted frames.
        probe: quick probe of the file; None if it cannot be opened.
        error: why it cannot be opened.
    """

    row: PlannedRow
    probe: QuickProbe | None
    error: VideoError | None = None


def file_states(rows: Iterable[VideoRow], settings: ExtractSettings) -> Callable[[str], FileState]:
    """Return a function that gives the size and time of a file, or of an object at a URL.

    Objects are looked up here, many at a time; one that is not allowed has neither.
    """
    urls = list({split_rate(row.path)[0] for row in rows if is_url(row.path)})
    if not urls:
        return file_state
    remote = settings.limits.remote
    with ThreadPoolExecutor(LOOKUPS) as threads:
        states = threads.map(lambda url: remote_state(url, remote), urls)
        known = dict(zip(urls, states, strict=True))

    def state_of(path: str) -> FileState:
        return known[split_rate(path)[0]] if is_url(path) else file_state(path)

    return state_of


def _refusal(url: str, settings: ExtractSettings) -> VideoError | None:
    """Return why a URL may not be fetched; None if it may."""
    try:
        check_allowed(url, settings.limits.remote)
    except VideoError as error:
        return error
    return None


def planning_pool(rows: Sequence[VideoRow], settings: ExtractSettings) -> DecoderPool:
    """Return the decoder pool of planning, with no more processes than there are files."""
    num_files = len({row.path for row in rows})
    return DecoderPool(max(1, min(num_files, PROCESSES_PER_CPU * num_cpus())), settings.limits)


def probe_rows(
    rows: Sequence[PlannedRow],
    sampling: Sampling,
    pool: DecoderPool,
    settings: ExtractSettings,
    *,
    with_orientation: bool = False,
) -> list[ProbedRow]:
    """Probe the files of rows quickly, each file once, several at a time.

    Objects at URLs are not fetched for it: their frames are estimated from their sizes.

    Args:
        rows: the rows.
        sampling: frames taken of each row.
        pool: the decoder pool.
        settings: settings of `extract`.
        with_orientation: decode each file's first frame, too.
    """
    paths = list(
        dict.fromkeys(row.path for row in rows if row.size is not None and not is_url(row.path))
    )
    questions = [QuickProbeRequest(path, with_orientation) for path in paths]
    answers = {paths[number]: answer for number, answer in pool.ask(questions)}
    probed = []
    for row in rows:
        found = answers.get(row.path)
        if is_url(row.path):
            found = _refusal(split_rate(row.path)[0], settings)
            if found is None and row.size is not None:
                found = estimated(row.size)
        if isinstance(found, QuickProbe):
            refusal = found.codec and format_refusal(
                found.codec, found.pixel_format, found.width, found.height
            )
            planned = row._replace(
                num_frames=wanted_frames(row, found, sampling), may_use_nvdec=not refusal
            )
            probed.append(ProbedRow(row=planned, probe=found))
            continue
        missing = VideoError("missing", f"{row.path}: not found or not reachable; correct its path")
        probed.append(ProbedRow(row=row, probe=None, error=found or missing))
    return probed


def file_properties(probed: Iterable[ProbedRow]) -> dict[str, dict[str, int]]:
    """Count properties of readable files, the most frequent first: `codec` → `h264` → number."""
    counts: dict[str, Counter[str]] = {}
    for one in probed:
        if (found := one.probe) is None or not found.codec:
            continue
        for name, value in (
            ("container", found.container.split(",")[0]),
            ("codec", found.codec),
            ("size", f"{found.width}x{found.height}"),
            ("frames/s", f"{found.fps:.4g}"),
            ("rotation", found.orientation),
            ("estimate", "" if found.is_counted else f"by {found.source}"),
        ):
            if value:
                counts.setdefault(name, Counter())[value] += 1
    return {name: dict(values.most_common(MAX_PROPERTIES)) for name, values in counts.items()}


def wanted_frames(row: PlannedRow, probe: QuickProbe, sampling: Sampling) -> int:
    """Estimate the number of frames taken of a row; at least one."""
    end = probe.seconds if row.end is None else min(row.end, probe.seconds)
    seconds = max(0.0, end - (row.start or 0.0))
    num_frames = probe.num_frames * min(1.0, seconds / (probe.seconds or 1.0))
    if sampling.fps is not None:
        num_frames = min(num_frames, seconds * sampling.fps)
    return max(1, ceil(num_frames / sampling.frame_stride))

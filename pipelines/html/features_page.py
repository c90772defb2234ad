"""Features page of `vtnpipe report`: failures, file properties, throughput, feature statistics."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...manifests.atomic import read_json
from ...manifests.failures import Failure, read_failures
from ...manifests.feature_folder import FeatureSpec
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow
from ...manifests.plan import read_file_properties, read_file_sizes
from ...manifests.times import frame_rate, seconds_edges
from ..console import counts_text
from .attention import Strip
from .page import Table, cell, table
from .plots import Chart, histogram, line_chart
from .thumbnails import Wanted, even_places, thumbnails

MAX_FAILURES = 500  # on a page; all are in failures.csv
MAX_PARTIAL = 6  # of whose frames there are pictures
MAX_SAMPLED_FRAMES = 50_000  # for the statistics
MAX_SAMPLED_VIDEOS = 200
MAX_NORM_LINES = 5
MAX_NORM_POINTS = 400
SAME = 0.999  # cosine of neighbors from which on they are near-duplicates
DEAD = 1e-6  # standard deviation, as a share of the largest dimension's
MAX_DEAD_LISTED = 20
MAX_REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of a sample of features."""

    facts: list[tuple[str, str]]
    charts: list[Chart | None]
    repeats: Table


@dataclass(frozen=True, kw_only=True)
class ExtractionSection:
    """What a page shows of a feature folder; the names are the template's."""

    metrics: list[dict[str, str]]
    facts: list[tuple[str, str]]
    reasons: Table
    failures: Table
    partial: list[Strip]
    charts: list[Chart | None]
    kinds: Table
    limit: str
    throughput: list[Chart | None]
    stages: Table
    statistics: Statistics


def extraction_section(
    store: FeatureStore, rows: dict[str, VideoRow], *, num_frames: int
) -> ExtractionSection:
    """What there is to show of a feature folder.

    Args:
        store: the folder.
        rows: of its manifest, by video_id.
        num_frames: pictures of each partial video.
    """
    folder, spec = store.folder, store.spec
    statuses = Counter(store.statuses.values())
    entries = [entry for parts in store.entries.values() for entry in parts]
    times = [store.times(video_id)[1] for video_id in _spread(list(store), 20_000)]
    run = read_json(folder.report, "remove it") if folder.report.exists() else {}
    throughput = run.get("throughput") or run.get("pace") or {}  # vtnpipe 0.1: pace
    failures = read_failures(folder.failures)
    size = sum(path.stat().st_size for path in folder.shards.glob("*.h5"))
    total = sum(entry.length for entry in entries)
    shape = " x ".join(map(str, store.row_shape))
    reasons = Counter((one.status, one.reason) for one in failures)
    return ExtractionSection(
        metrics=[
            {"name": f"videos {status}", "value": f"{statuses[status]:,}"}
            for status in ("ok", "partial", "failed")
        ]
        + [
            {"name": "frames", "value": f"{total:,}"},
            {"name": "MiB of shards", "value": f"{size / 2**20:,.1f}"},
        ],
        facts=[
            ("folder", str(folder.root.absolute())),
            ("backbone", f"{spec.backbone}, weights {store.extraction.weights}"),
            (
                "features",
                f"{shape} {spec.feature_dtype} per frame, computed in {spec.precision}",
            ),
            ("frames taken", _sampling_words(spec)),
            (
                "videos",
                f"{len(store.entries.keys() & rows.keys()):,} of {len(rows):,} in the manifest are "
                "finished",
            ),
            ("decoders", _counts(entry.decoder for entry in entries)),
            (
                "not by decord because",
                _counts(entry.decoder_reason for entry in entries),
            ),
        ],
        reasons=table(
            "Status, Reason, Videos", [(*key, count) for key, count in reasons.most_common()]
        ),
        failures=table(
            "Video, Status, Reason, Message, Lost frames",
            [
                (one.video_id, one.status, one.reason, one.message, one.num_lost_frames)
                for one in failures[:MAX_FAILURES]
            ],
            f"{min(len(failures), MAX_FAILURES):,} of {len(failures):,} lines of failures.csv",
        ),
        partial=_partial(store, rows, failures, num_frames),
        charts=[
            histogram("Durations", [t[-1] - t[0] for t in times], x_label="seconds", unit="videos"),
            histogram(
                "Frame rates", [frame_rate(t) for t in times], x_label="frames/s", unit="videos"
            ),
        ],
        kinds=table(
            "What, Is, Files",
            [
                (what, value, count)
                for what, counts in read_file_properties(folder).items()
                for value, count in counts.most_common(12)
            ],
        ),
        limit=throughput.get("limit", ""),
        throughput=[_throughput_chart(throughput)] if throughput else [],
        stages=_stages(throughput),
        statistics=_statistics(store),
    )


def _sampling_words(spec: FeatureSpec) -> str:
    frames = "every frame" if spec.frame_stride == 1 else f"one in {spec.frame_stride}"
    frames = frames if spec.fps is None else f"{spec.fps:g} per second"
    return f"{frames}; views: {', '.join(spec.views)}"


def _counts(values: Iterable[str]) -> str:
    return counts_text(dict(Counter(filter(None, values)).most_common()), most=8)


def _spread(values: list[str], most: int) -> list[str]:
    """At most so many of them, evenly among all."""
    return values[:: max(1, -(-len(values) // most))]


def _partial(
    store: FeatureStore,
    rows: dict[str, VideoRow],
    failures: Sequence[Failure],
    num_frames: int,
) -> list[Strip]:
    """Strips of partial videos."""
    chosen = {
        one.video_id: one
        for one in failures
        if one.status == "partial" and one.video_id in store and one.video_id in rows
    }
    shown = list(chosen)[:MAX_PARTIAL]
    sizes = read_file_sizes(store.folder, shown)
    times = {video_id: store.times(video_id) for video_id in shown}
    wanted = {
        video_id: Wanted.of(
            rows[video_id],
            even_places(timestamps, num_frames),
            frame_index,
            timestamps,
            sizes.get(video_id),
        )
        for video_id, (frame_index, timestamps) in times.items()
    }
    return [
        Strip(
            name=video_id,
            lines=[
                f"{chosen[video_id].reason}: {chosen[video_id].message}",
                f"{len(times[video_id][0]):,} frames stored, "
                f"{chosen[video_id].num_lost_frames:,} lost",
            ],
            thumbnails=found.thumbnails,
            edges=seconds_edges(times[video_id][1]),
            note=found.note,
        )
        for video_id, found in (thumbnails(wanted) if wanted else {}).items()
    ]


def _throughput_chart(throughput: dict[str, Any]) -> Chart | None:
    rates = throughput.get("frames_per_second_over_time") or []
    step = throughput.get("seconds_of_tasks", 0.0) / max(1, len(rates))
    points = [(round((number + 0.5) * step, 2), rate) for number, rate in enumerate(rates)]
    return line_chart(
        "Throughput",
        {"frames/s": points},
        x_label="seconds since the first task began",
        from_zero=True,
    )


def _stages(throughput: dict[str, Any]) -> Table:
    stages: dict[str, float] = throughput.get("seconds_by_stage", {})
    total = sum(stages.values()) or 1.0
    rows = [
        (stage, cell(seconds, "{:,.1f}"), cell(seconds / total, "{:.1%}"))
        for stage, seconds in sorted(stages.items(), key=lambda pair: -pair[1])
    ]
    return table("Stage, Seconds, Share", rows)


def _statistics(store: FeatureStore) -> Statistics:
    """Norms, near-duplicates and dead dimensions, of neighboring frames of videos evenly among
    all.
    """
    ids = _spread(list(store), MAX_SAMPLED_VIDEOS)
    if not ids:
        return Statistics(facts=[], charts=[], repeats=table("Video", []))
    at_most = max(2, MAX_SAMPLED_FRAMES // len(ids))
    D = store.row_shape[-1]
    norms, neighbors, repeats, broken = [], [], [], Counter[str]()
    count, total, squares = 0, np.zeros(D), np.zeros(D)
    for video_id in ids:
        features = _middle(store, video_id, at_most)
        is_finite = np.isfinite(features).all(1)
        if not is_finite.all():
            broken[video_id] = int((~is_finite).sum())
            features = features[is_finite]
        cosine = _cosines(features)
        norms.append(np.linalg.norm(features, axis=1))
        neighbors.append(cosine)
        count += len(features)
        total += features.sum(0)
        squares += (features**2).sum(0)
        if (cosine > SAME).any():
            share = cell(float((cosine > SAME).mean()), "{:.1%}")
            repeats.append((video_id, len(features), share))
    every, near = np.concatenate(norms), np.concatenate(neighbors)
    repeats.sort(key=lambda row: -(row[2].value or 0))
    facts = [
        (
            "looked at",
            f"{count:,} frames of {len(ids):,} videos, evenly among all: at most {at_most:,} "
            "neighboring ones of each",
        )
    ]
    if broken:
        named = ", ".join(f"{video_id} ({n:,})" for video_id, n in broken.most_common(8))
        facts.append(("NOT FINITE", f"{broken.total():,} frames hold NaN or infinity: {named}"))
    if count:
        facts.append(("norms", f"{every.min():.3g} to {every.max():.3g}, mean {every.mean():.3g}"))
    if len(near):
        share = (near > SAME).mean()
        facts.append(("neighboring frames alike", f"{share:.2%} have a cosine above {SAME}"))
    if count > 1:
        facts.append(("dead dimensions", _dead(total / count, squares / count)))
    series = {video_id: _norms_over_time(store, video_id) for video_id in ids[:MAX_NORM_LINES]}
    return Statistics(
        facts=facts,
        charts=[
            histogram("Norms of features", every, x_label="norm", unit="frames"),
            line_chart("Norms over time", series, x_label="seconds"),
            histogram(
                "Neighbouring frames", near, x_label="cosine of their features", unit="pairs"
            ),
        ],
        repeats=table(
            "Video, Frames looked at, Neighbours alike",
            repeats[:MAX_REPEATS],
            f"Of those looked at; alike: a cosine above {SAME}",
        ),
    )


def _dead(mean: npt.NDArray[np.float64], square: npt.NDArray[np.float64]) -> str:
    """Which dimensions never change, by their mean and mean square."""
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    scale = np.sqrt(square.mean()) * 1e-7  # below which a spread is rounding
    dead = np.flatnonzero(spread <= max(DEAD * spread.max(), scale))
    words = f"{len(dead):,} of {len(spread):,} never change"
    if not len(dead) or len(dead) == len(spread):
        return words
    named = ", ".join(map(str, dead[:MAX_DEAD_LISTED]))
    return f"{words}: {named}{', …' if len(dead) > MAX_DEAD_LISTED else ''}"


def _middle(store: FeatureStore, video_id: str, most: int) -> npt.NDArray[np.float64]:
    """So many neighboring frames from a video's middle, of its first view: [t, D]."""
    num_frames = store.num_frames(video_id)
    first = max(0, (num_frames - most) // 2)
    return _rows(store, video_id, np.arange(first, min(num_frames, first + most)))


def _norms_over_time(store: FeatureStore, video_id: str) -> list[tuple[float, float | None]]:
    """Seconds and norms of frames along a whole video, evenly."""
    times = store.times(video_id)[1]
    places = np.arange(0, len(times), max(1, -(-len(times) // MAX_NORM_POINTS)))
    norms = np.linalg.norm(_rows(store, video_id, places), axis=1)
    return list(zip(times[places].tolist(), norms.tolist(), strict=True))


def _rows(
    store: FeatureStore, video_id: str, places: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Some frames' features, of the first view: [t, D]."""
    features = store.take(video_id, places)
    features = features if features.ndim == 2 else features[:, 0]
    return features.astype(np.float64)


def _cosines(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each frame and the next, [T - 1]; of two that are all 0, 1."""
    norms = np.linalg.norm(features, axis=1)
    product, scale = (features[1:] * features[:-1]).sum(1), norms[1:] * norms[:-1]
    cosines = np.where(scale > 0, product / np.where(scale > 0, scale, 1), norms[1:] == norms[:-1])
    return np.asarray(cosines, dtype=np.float64)

"""Section on a feature folder of the page of `vtnpipe report`: failures, files, statistics."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...manifests.atomic import read_json
from ...manifests.errors import counted
from ...manifests.failures import Failure, read_failures
from ...manifests.feature_folder import FeatureSpec
from ...manifests.feature_store import FeatureStore, num_noted
from ...manifests.manifest import VideoRow, has_numbers_as_labels
from ...manifests.plan import read_file_properties, read_file_sizes
from ...manifests.times import frame_rate, seconds_edges
from ..console import counts_text
from .attention import VideoStrip
from .page import Table, cell, table
from .plots import Chart, histogram, line_chart
from .thumbnails import ThumbnailRequest, decode_thumbnails, even_positions

MAX_CLASSES = 2000  # in the table of classes and splits
ORDER = {"train": 0, "val": 1, "test": 2}  # of splits; others follow
MAX_FAILURES = 500  # rows of the page's table; failures.csv has all
MAX_PARTIAL = 6  # partial videos shown with thumbnails
MAX_TIMED_VIDEOS = 20_000  # videos in the histograms of durations and frame rates
MAX_SAMPLED_FRAMES = 50_000  # frames in the statistics of the features
MAX_SAMPLED_VIDEOS = 200  # videos in the statistics of the features
MAX_NORM_LINES = 5
MAX_NORM_POINTS = 400
NEAR_DUPLICATE = 0.999  # cosine above which neighboring frames count as near-duplicates
DEAD = 1e-6  # standard deviation of a dead dimension, as a share of the largest one
MAX_DEAD_LISTED = 20
MAX_STATIC_VIDEOS = 20


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of a sample of features, as facts, charts and a table of almost static videos."""

    facts: list[tuple[str, str]]
    charts: list[Chart | None]
    static_videos: Table


@dataclass(frozen=True, kw_only=True)
class ExtractionSection:
    """Values of the page's section on a feature folder, as `report.html` reads them."""

    metrics: list[dict[str, str]]
    facts: list[tuple[str, str]]
    reasons: Table
    failures: Table
    partial: list[VideoStrip]
    classes: Table
    charts: list[Chart | None]
    file_properties: Table
    limit: str
    throughput: list[Chart | None]
    stages: Table
    statistics: Statistics


def extraction_section(
    store: FeatureStore, rows: dict[str, VideoRow], *, num_frames: int
) -> ExtractionSection:
    """Return the values of a feature folder's section.

    Args:
        store: the features.
        rows: video_id → row of the folder's manifest.
        num_frames: thumbnails per partial video.
    """
    folder, spec = store.folder, store.spec
    statuses = Counter(store.statuses.values())
    entries = [entry for parts in store.entries.values() for entry in parts]
    times = [store.times(video_id)[1] for video_id in _evenly(list(store), MAX_TIMED_VIDEOS)]
    last_run = read_json(folder.report, "remove it") if folder.report.exists() else {}
    throughput = last_run.get("throughput") or last_run.get("pace") or {}  # vtnpipe 0.1: pace
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
            ("sampling", _sampling_text(spec)),
            (
                "videos",
                f"{len(store.entries.keys() & rows.keys()):,} of {len(rows):,} in the manifest are "
                "finished",
            ),
            ("decoders", _counts(entry.decoder for entry in entries)),
            (
                "second tries",
                _counts(entry.decoder_reason for entry in entries),
            ),
            *(
                ("note", f"{counted(count, 'video')}: {note}")
                for note, count in num_noted(store.entries).items()
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
            f"{min(len(failures), MAX_FAILURES):,} of {len(failures):,} rows of failures.csv",
        ),
        partial=_partial_strips(store, rows, failures, num_frames),
        classes=_class_table(rows.values()),
        charts=[
            histogram("Durations", [t[-1] - t[0] for t in times], x_label="seconds", unit="videos"),
            histogram(
                "Frame rates", [frame_rate(t) for t in times], x_label="frames/s", unit="videos"
            ),
        ],
        file_properties=table(
            "Property, Value, Files",
            [
                (name, value, count)
                for name, counts in read_file_properties(folder).items()
                for value, count in counts.most_common(12)
            ],
        ),
        limit=throughput.get("limit", ""),
        throughput=[_throughput_chart(throughput)] if throughput else [],
        stages=_stage_table(throughput),
        statistics=_statistics(store),
    )


def _class_table(rows: Iterable[VideoRow]) -> Table:
    """Return the number of videos of each class, by split.

    Without rows if there are too many classes, or if most labels are distinct numbers.
    """
    rows = list(rows)
    labels = Counter(label for row in rows for label in row.label.split("|"))
    if len(labels) > MAX_CLASSES or has_numbers_as_labels(rows):
        return Table([], [])
    splits = sorted({row.split for row in rows}, key=lambda split: (ORDER.get(split, 9), split))
    counts = Counter((label, row.split) for row in rows for label in row.label.split("|"))
    return table(
        ", ".join(["Class", *(split.replace(",", " ") or "no split" for split in splits), "all"]),
        [
            (label or "–", *(counts[label, split] for split in splits), labels[label])
            for label in sorted(labels)
        ],
        f"Videos of {counted(len(labels), 'class', 'classes')} by split, as in the manifest",
    )


def _sampling_text(spec: FeatureSpec) -> str:
    frames = "every frame" if spec.frame_stride == 1 else f"one in {spec.frame_stride}"
    frames = frames if spec.fps is None else f"{spec.fps:g} per second"
    return f"{frames}; views: {', '.join(spec.views)}"


def _counts(values: Iterable[str]) -> str:
    return counts_text(dict(Counter(filter(None, values)).most_common()), most=8)


def _evenly(values: list[str], most: int) -> list[str]:
    """Return at most `most` values, evenly spaced."""
    return values[:: max(1, -(-len(values) // most))]


def _partial_strips(
    store: FeatureStore,
    rows: dict[str, VideoRow],
    failures: Sequence[Failure],
    num_frames: int,
) -> list[VideoStrip]:
    """Return strips of the first partial videos.

    Args:
        store: the features.
        rows: video_id → row of the folder's manifest.
        failures: rows of failures.csv.
        num_frames: thumbnails per video.
    """
    chosen = {
        one.video_id: one
        for one in failures
        if one.status == "partial" and one.video_id in store and one.video_id in rows
    }
    shown = list(chosen)[:MAX_PARTIAL]
    sizes = read_file_sizes(store.folder, shown)
    times = {video_id: store.times(video_id) for video_id in shown}
    requests = {
        video_id: ThumbnailRequest.of(
            rows[video_id],
            even_positions(timestamps, num_frames),
            frame_index,
            timestamps,
            sizes.get(video_id),
        )
        for video_id, (frame_index, timestamps) in times.items()
    }
    return [
        VideoStrip(
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
        for video_id, found in (decode_thumbnails(requests) if requests else {}).items()
    ]


def _throughput_chart(throughput: dict[str, Any]) -> Chart | None:
    rates = throughput.get("frames_per_second_over_time") or []
    step = throughput.get("seconds_of_tasks", 0.0) / max(1, len(rates))
    points = [(round((number + 0.5) * step, 2), rate) for number, rate in enumerate(rates)]
    return line_chart(
        "Throughput",
        {"frames/s": points},
        x_label="seconds since the start of the first task",
        from_zero=True,
    )


def _stage_table(throughput: dict[str, Any]) -> Table:
    stages: dict[str, float] = throughput.get("seconds_by_stage", {})
    total = sum(stages.values()) or 1.0
    rows = [
        (stage, cell(seconds, "{:,.1f}"), cell(seconds / total, "{:.1%}"))
        for stage, seconds in sorted(stages.items(), key=lambda pair: -pair[1])
    ]
    return table("Stage, Seconds, Share", rows)


def _statistics(store: FeatureStore) -> Statistics:
    """Return norms, near-duplicates and dead dimensions of a sample of the features.

    The sample is a stretch of neighboring frames in the middle of each of some videos, which are
    evenly spaced among all videos.
    """
    ids = _evenly(list(store), MAX_SAMPLED_VIDEOS)
    if not ids:
        return Statistics(facts=[], charts=[], static_videos=table("Video", []))
    max_frames = max(2, MAX_SAMPLED_FRAMES // len(ids))
    D = store.row_shape[-1]
    norms, cosines, static, not_finite = [], [], [], Counter[str]()
    count, total, squares = 0, np.zeros(D), np.zeros(D)
    for video_id in ids:
        features = _middle(store, video_id, max_frames)
        is_finite = np.isfinite(features).all(1)
        if not is_finite.all():
            not_finite[video_id] = int((~is_finite).sum())
            features = features[is_finite]
        cosine = _neighbor_cosines(features)
        norms.append(np.linalg.norm(features, axis=1))
        cosines.append(cosine)
        count += len(features)
        total += features.sum(0)
        squares += (features**2).sum(0)
        if (is_near := cosine > NEAR_DUPLICATE).any():
            static.append((video_id, len(features), cell(float(is_near.mean()), "{:.1%}")))
    all_norms, all_cosines = np.concatenate(norms), np.concatenate(cosines)
    static.sort(key=lambda row: -(row[2].value or 0))
    facts = [
        (
            "sample",
            f"{count:,} frames of {len(ids):,} videos, evenly spaced among all; at most "
            f"{max_frames:,} neighboring frames per video",
        )
    ]
    if not_finite:
        named = ", ".join(f"{video_id} ({n:,})" for video_id, n in not_finite.most_common(8))
        num_frames = not_finite.total()
        facts.append(("NOT FINITE", f"{num_frames:,} frames contain NaN or infinity: {named}"))
    if count:
        extent = f"{all_norms.min():.3g} to {all_norms.max():.3g}"
        facts.append(("norms", f"{extent}, mean {all_norms.mean():.3g}"))
    if len(all_cosines):
        share = (all_cosines > NEAR_DUPLICATE).mean()
        facts.append(
            ("neighboring frames alike", f"{share:.2%} have a cosine above {NEAR_DUPLICATE}")
        )
    if count > 1:
        facts.append(("dead dimensions", _dead_dimensions(total / count, squares / count)))
    series = {video_id: _norms_over_time(store, video_id) for video_id in ids[:MAX_NORM_LINES]}
    return Statistics(
        facts=facts,
        charts=[
            histogram("Norms of the features", all_norms, x_label="norm", unit="frames"),
            line_chart("Norms over time", series, x_label="seconds"),
            histogram(
                "Neighboring frames", all_cosines, x_label="cosine of their features", unit="pairs"
            ),
        ],
        static_videos=table(
            "Video, Frames in the sample, Neighbors alike",
            static[:MAX_STATIC_VIDEOS],
            f"Share of neighboring frames in the sample with a cosine above {NEAR_DUPLICATE}",
        ),
    )


def _dead_dimensions(mean: npt.NDArray[np.float64], square: npt.NDArray[np.float64]) -> str:
    """Return which dimensions never change, in words.

    Args:
        mean: [D] mean of the features.
        square: [D] mean of their squares.
    """
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    rounding = np.sqrt(square.mean()) * 1e-7  # a smaller spread is rounding
    dead = np.flatnonzero(spread <= max(DEAD * spread.max(), rounding))
    summary = f"{len(dead):,} of {len(spread):,} never change"
    if not len(dead) or len(dead) == len(spread):
        return summary
    named = ", ".join(map(str, dead[:MAX_DEAD_LISTED]))
    return f"{summary}: {named}{', …' if len(dead) > MAX_DEAD_LISTED else ''}"


def _middle(store: FeatureStore, video_id: str, most: int) -> npt.NDArray[np.float64]:
    """Return features [t, D] of at most `most` neighboring frames in the middle of a video."""
    num_frames = store.num_frames(video_id)
    first = max(0, (num_frames - most) // 2)
    return _features(store, video_id, np.arange(first, min(num_frames, first + most)))


def _norms_over_time(store: FeatureStore, video_id: str) -> list[tuple[float, float | None]]:
    """Return (seconds, norm) of frames that are evenly spaced over a whole video."""
    times = store.times(video_id)[1]
    positions = np.arange(0, len(times), max(1, -(-len(times) // MAX_NORM_POINTS)))
    norms = np.linalg.norm(_features(store, video_id, positions), axis=1)
    return list(zip(times[positions].tolist(), norms.tolist(), strict=True))


def _features(
    store: FeatureStore, video_id: str, positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the features [t, D] of some stored frames, of the first view."""
    features = store.take(video_id, positions)
    features = features if features.ndim == 2 else features[:, 0]
    return features.astype(np.float64)


def _neighbor_cosines(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosines of each frame and the next, shape [T - 1]; 1 if both are zero vectors."""
    norms = np.linalg.norm(features, axis=1)
    products, scales = (features[1:] * features[:-1]).sum(1), norms[1:] * norms[:-1]
    is_defined = scales > 0
    cosines = np.where(
        is_defined, products / np.where(is_defined, scales, 1), norms[1:] == norms[:-1]
    )
    return np.asarray(cosines, dtype=np.float64)

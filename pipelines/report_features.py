"""The extraction's part of `vtnpipe report`: what failed, what the videos are, how fast it went,
and whether the features look sound.
"""

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..manifests.folder import FeatureFolder
from ..manifests.plan import read_kinds
from ..manifests.store import FeatureStore
from ..manifests.times import frame_rate
from ..manifests.videos import VideoRow
from .charts import Chart, histogram, line_chart
from .pages import Table, cell, table
from .strips import Strip, even_ranks, seconds_edges
from .thumbnails import Wanted, thumbnails

MAX_FAILURES = 500  # on a page; all are in failures.csv
MAX_PARTIAL = 6  # of whose frames there are pictures
MAX_SAMPLED_FRAMES = 50_000  # for the statistics
MAX_SAMPLED_VIDEOS = 200
MAX_NORM_LINES = 5
MAX_NORM_POINTS = 400
SAME = 0.999  # cosine of neighbours from which on they are near-duplicates
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

    figures: list[dict[str, str]]
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
    folder, identity = store.folder, store.extraction["identity"]
    statuses = Counter(store.statuses.values())
    entries = [entry for parts in store.entries.values() for entry in parts]
    times = [store.times(video_id)[1] for video_id in _spread(list(store), 20_000)]
    run = json.loads(folder.report.read_text(encoding="utf-8")) if folder.report.exists() else {}
    pace = run.get("pace") or {}
    failures = _failures(folder)
    size = sum(path.stat().st_size for path in folder.shards.glob("*.h5"))
    total = sum(entry.length for entry in entries)
    shape = " x ".join(map(str, store.row_shape))
    reasons = Counter((one["status"], one["reason"]) for one in failures)
    return ExtractionSection(
        figures=[
            {"name": f"videos {status}", "value": f"{statuses[status]:,}"}
            for status in ("ok", "partial", "failed")
        ]
        + [
            {"name": "frames", "value": f"{total:,}"},
            {"name": "MiB of shards", "value": f"{size / 2**20:,.1f}"},
        ],
        facts=[
            ("folder", str(folder.root.absolute())),
            ("backbone", f"{identity['backbone']}, weights {store.extraction['weights']}"),
            (
                "features",
                f"{shape} {identity['store']} a frame, computed in {identity['precision']}",
            ),
            ("frames taken", _sampling_words(identity)),
            ("videos", f"{len(store.entries):,} of {len(rows):,} in the manifest are finished"),
            ("decoders", _counts(entry.decoder for entry in entries if entry.decoder)),
            (
                "not by decord because",
                _counts(e.decoder_reason for e in entries if e.decoder_reason),
            ),
        ],
        reasons=table(
            "Status, Reason, Videos", [(*key, count) for key, count in reasons.most_common()]
        ),
        failures=table(
            "Video, Status, Reason, Message, Lost frames",
            [
                (one["video_id"], one["status"], one["reason"], one["message"], lost(one))
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
                for what, counts in read_kinds(folder).items()
                for value, count in counts.most_common(12)
            ],
        ),
        limit=pace.get("limit", ""),
        throughput=[_throughput(pace)] if pace else [],
        stages=_stages(pace),
        statistics=_statistics(store),
    )


def _sampling_words(identity: dict[str, Any]) -> str:
    frames = "every frame" if identity["every"] == 1 else f"one in {identity['every']}"
    frames = frames if identity["fps"] is None else f"{identity['fps']:g} a second"
    return f"{frames}; views: {', '.join(identity['views'])}"


def lost(failure: dict[str, str]) -> int:
    """Of a line of failures.csv."""
    return int(failure["num_lost_frames"])


def _failures(folder: FeatureFolder) -> list[dict[str, str]]:
    if not folder.failures.exists():
        return []
    with folder.failures.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _counts(values: Any) -> str:
    counts = Counter(values).most_common()
    return ", ".join(f"{value} ({count:,})" for value, count in counts[:8]) or "–"


def _spread(values: list[str], most: int) -> list[str]:
    """At most so many of them, evenly among all."""
    return values[:: max(1, -(-len(values) // most))]


def _partial(
    store: FeatureStore,
    rows: dict[str, VideoRow],
    failures: Sequence[dict[str, str]],
    num_frames: int,
) -> list[Strip]:
    """Strips of partial videos."""
    chosen = [one for one in failures if one["status"] == "partial" and one["video_id"] in store]
    wanted, lines, edges = {}, {}, {}
    for one in chosen[:MAX_PARTIAL]:
        video_id = one["video_id"]
        index, times = store.times(video_id)
        ranks = even_ranks(times, index, num_frames)
        at = dict(zip(index.tolist(), times.tolist(), strict=True))
        wanted[video_id] = Wanted(rows[video_id], ranks, [at[rank] for rank in ranks])
        lines[video_id] = [
            f"{one['reason']}: {one['message']}",
            f"{len(index):,} frames stored, {lost(one):,} lost",
        ]
        edges[video_id] = seconds_edges(times)
    pictures = thumbnails(wanted) if wanted else {}
    return [
        Strip(
            name=video_id,
            lines=lines[video_id],
            thumbnails=found.thumbnails,
            edges=edges[video_id],
        )
        for video_id, found in pictures.items()
    ]


def _throughput(pace: dict[str, Any]) -> Chart | None:
    rates = pace.get("frames_per_second_over_time") or []
    step = pace["seconds"] / max(1, len(rates))
    points = [(round((number + 0.5) * step, 2), rate) for number, rate in enumerate(rates)]
    return line_chart(
        "Throughput", {"frames/s": points}, x_label="seconds since the start", from_zero=True
    )


def _stages(pace: dict[str, Any]) -> Table:
    stages: dict[str, float] = pace.get("seconds_by_stage", {})
    total = sum(stages.values()) or 1.0
    rows = [
        (stage, cell(seconds, "{:,.1f}"), cell(seconds / total, "{:.1%}"))
        for stage, seconds in sorted(stages.items(), key=lambda pair: -pair[1])
    ]
    return table("Stage, Seconds, Share", rows)


def _statistics(store: FeatureStore) -> Statistics:
    """Norms, near-duplicates and dead dimensions, of some whole videos evenly among all."""
    ids, num_sampled = [], 0
    for video_id in _spread(list(store), MAX_SAMPLED_VIDEOS):
        if num_sampled < MAX_SAMPLED_FRAMES:
            ids.append(video_id)
            num_sampled += store.num_frames(video_id)
    norms, neighbours, rows = [], [], []
    series: dict[str, list[tuple[float, float | None]]] = {}
    count, total, squares = 0, np.zeros(store.row_shape[-1]), np.zeros(store.row_shape[-1])
    for video_id in ids:
        features = _first_view(store, video_id)
        norm, cosine = np.linalg.norm(features, axis=1), _cosines(features)
        norms.append(norm)
        neighbours.append(cosine)
        count += len(features)
        total += features.sum(0)
        squares += (features**2).sum(0)
        if len(series) < MAX_NORM_LINES:
            step = max(1, -(-len(norm) // MAX_NORM_POINTS))
            times = store.times(video_id)[1]
            series[video_id] = list(zip(times[::step].tolist(), norm[::step].tolist(), strict=True))
        if len(cosine) and (cosine > SAME).any():
            rows.append((video_id, len(features), cell(float((cosine > SAME).mean()), "{:.1%}")))
    if not ids:
        return Statistics(facts=[], charts=[], repeats=table("Video", []))
    spread = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    dead = np.flatnonzero(spread <= DEAD * spread.max())
    every, near = np.concatenate(norms), np.concatenate(neighbours)
    rows.sort(key=lambda row: -(row[2].value or 0))
    share = f"{(near > SAME).mean():.2%}" if len(near) else "–"
    named = f": {', '.join(map(str, dead[:MAX_DEAD_LISTED]))}" if len(dead) else ""
    named += ", …" if len(dead) > MAX_DEAD_LISTED else ""
    return Statistics(
        facts=[
            ("looked at", f"{count:,} frames of {len(ids):,} videos, evenly among all"),
            ("norms", f"{every.min():.3g} to {every.max():.3g}, mean {every.mean():.3g}"),
            ("neighbouring frames alike", f"{share} have a cosine above {SAME}"),
            (
                "dead dimensions",
                f"{len(dead)} of {store.row_shape[-1]} never change{named}",
            ),
        ],
        charts=[
            histogram("Norms of features", every, x_label="norm", unit="frames"),
            line_chart("Norms over time", series, x_label="seconds"),
            histogram(
                "Neighbouring frames", near, x_label="cosine of their features", unit="pairs"
            ),
        ],
        repeats=table(
            "Video, Frames, Neighbours alike",
            rows[:MAX_REPEATS],
            f"Of those looked at; alike: a cosine above {SAME}",
        ),
    )


def _first_view(store: FeatureStore, video_id: str) -> npt.NDArray[np.float64]:
    features = store[video_id].features.astype(np.float64)
    return features if features.ndim == 2 else features[:, 0]


def _cosines(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each frame and the next, [T - 1]; of two that are all 0, 1."""
    norms = np.linalg.norm(features, axis=1)
    product, scale = (features[1:] * features[:-1]).sum(1), norms[1:] * norms[:-1]
    cosines = np.where(scale > 0, product / np.where(scale > 0, scale, 1), norms[1:] == norms[:-1])
    return np.asarray(cosines, dtype=np.float64)

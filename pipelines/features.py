"""`vtnpipe features`: what lies in a feature folder, and whether every byte of it is sound."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, FeaturesError
from ..manifests.feature_folder import FeatureFolder, locked, read_extraction
from ..manifests.manifest import read_manifest
from ..manifests.plan import read_plans
from .console import CountProgress, say
from .processors import num_cpus
from .settings import setting


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """The settings of `vtnpipe features verify`."""

    drop: bool = setting(False, help="Remove damaged shards, so that extract makes them again.")


def show_features(features: str | Path) -> Iterator[str]:
    """Yields lines about a folder: what was extracted and how, counts, bytes.

    Raises:
        FeaturesError: it is not a feature folder.
    """
    from ..manifests.shards import open_features

    store = open_features(features)
    identity = store.extraction["identity"]
    counts = Counter(store.statuses.values())
    entries = [entry for parts in store.entries.values() for entry in parts]
    num_planned = len(read_manifest(store.folder.manifest)) if store.folder.manifest.exists() else 0
    shards = list(store.folder.shards.glob("*.h5"))
    seconds = sum((entry.length - 1) / entry.fps for entry in entries if entry.length > 1)
    shape = " × ".join(map(str, store.row_shape))
    yield f"{store.folder.root}"
    yield f"  backbone     {identity['backbone']}, weights {store.extraction['weights']}"
    yield f"  fingerprint  {store.extraction['fingerprint']}"
    yield f"  features     {shape} {identity['store']} a frame, computed in {identity['precision']}"
    yield (
        f"  videos       {len(store.entries):,} of {num_planned:,}: "
        + ", ".join(f"{counts[status]:,} {status}" for status in ("ok", "partial", "failed"))
    )
    yield f"  frames       {sum(e.length for e in entries):,} ({seconds / 3600:,.2f} hours)"
    yield (
        f"  shards       {len(shards):,} ({sum(p.stat().st_size for p in shards) / 2**20:,.1f} MiB)"
    )
    decoders = Counter(entry.decoder for entry in entries if entry.decoder)
    yield "  decoders     " + (", ".join(f"{n} {count:,}" for n, count in decoders.items()) or "–")


def show_video(features: str | Path, video_id: str) -> Iterator[str]:
    """Yields lines about one video of a folder.

    Raises:
        FeaturesError: the folder has no such video.
    """
    from ..manifests.shards import open_features

    store = open_features(features)
    if video_id not in store.entries:
        raise FeaturesError(
            f"{features}: video_id {video_id!r} has not been "
            "extracted into it; see its manifest.csv"
        )
    status = store.statuses[video_id]
    yield video_id
    for entry in store.entries[video_id]:
        if entry.status != "ok":
            yield f"  {entry.status:11}  {entry.reason}: {entry.message}"
    if status == "failed":
        return
    video = store[video_id]
    yield f"  features     {' × '.join(map(str, video.features.shape))} {video.features.dtype}"
    first, last = video.frame_index[[0, -1]]
    yield f"  frames       {first} to {last}, {video.num_lost_frames} lost"
    begin, end = video.timestamps[[0, -1]]
    yield f"  seconds      {begin:.3f} to {end:.3f} ({video.fps:.3f} fps)"
    reason = store.entries[video_id][0].decoder_reason
    yield f"  decoder      {video.decoder}{f' ({reason})' if reason else ''}"


def verify_features(
    features: str | Path,
    settings: VerifySettings | None = None,
    *,
    console: Console | None = None,
) -> int:
    """Checks every byte of a folder: weights, plans, and each shard's table, checksums and values.

    Args:
        features: the folder; it need not be writable unless shards are to be dropped.
        settings: by default, `VerifySettings()`.
        console: where to print what is wrong; by default, nowhere.

    Returns:
        the exit code: 1 where anything is damaged.

    Raises:
        FeaturesError: it is not a feature folder, a plan is damaged, or a run is writing there that
            would not know of dropped shards.
    """
    from ..manifests.verify import faults_of_backbone, faults_of_shard

    drop = (settings or VerifySettings()).drop
    console = console or Console(quiet=True)
    folder = FeatureFolder(Path(features))
    extraction = read_extraction(folder)
    with locked(folder) if drop else contextlib.nullcontext():
        tasks = {task.name: task for task in read_plans(folder, extraction["fingerprint"])}
        shards = sorted(folder.shards.glob("*.h5"))
        faults = list(faults_of_backbone(folder, extraction))
        damaged = []
        with (
            ThreadPoolExecutor(num_cpus()) as pool,
            CountProgress("verify", "shards", len(shards), console) as progress,
        ):
            found = pool.map(lambda path: list(faults_of_shard(path, extraction, tasks)), shards)
            for path, those in zip(shards, found, strict=True):
                progress.count()
                faults += [fault.message for fault in those]
                if any(fault.is_damage for fault in those):
                    damaged.append(path)
        say(console, *faults)
        for path in damaged if drop else ():
            path.unlink(missing_ok=True)
    num_missing = len(tasks) - len({path.stem for path in shards} & tasks.keys())
    if num_missing:
        say(console, f"{folder.root}: {num_missing:,} of {len(tasks):,} tasks have no shard yet")
    if not faults:
        say(console, f"{folder.root}: {len(shards):,} shards are sound")
        return EXIT_OK
    count = f"{len(damaged):,} of {len(shards):,} shards"
    if not damaged:
        end = f"{len(faults):,} faults, told above, none of which --drop mends"
    elif drop:
        end = f"removed {count}; the extract command that made them makes them again"
    else:
        end = f"{count} are damaged; --drop removes them, so that extract makes them again"
    say(console, f"{folder.root}: {end}")
    return EXIT_WITH_FAILURES

"""`vtnpipe features`: show a feature folder, verify it, export its features, import others'."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from ..extract.cores import num_cpus
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, FeaturesError, SettingsError, counted
from ..manifests.feature_folder import FeatureFolder, read_extraction
from ..manifests.feature_store import num_noted, open_features
from ..manifests.lock import locked
from ..manifests.manifest import read_manifest
from ..manifests.plan import read_plans
from ..manifests.verify import backbone_faults, shard_faults
from .console import CountProgress, say
from .extraction.export_features import ExportSettings, export_features
from .extraction.import_features import ImportSettings, import_features
from .options import console_options, settings_options
from .settings import at_least, check_settings, setting

MIN_COSINE = 0.99  # of stored and recomputed features; bfloat16 gives 0.9999
NUM_LISTED = 5  # recomputed frames with the smallest cosines
MAX_NAME_BYTES = 200  # file systems allow 255, with an extension


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Settings of `vtnpipe features verify`."""

    drop: bool = setting(False, help="Remove damaged shards, so that extract writes them again.")
    recompute: int = setting(
        0,
        help="Number of random frames to recompute by the plainest path (PyAV, PIL, float32) and "
        "compare; the videos must be where they were.",
        check=at_least(0),
    )

    def __post_init__(self) -> None:
        check_settings(self)


def show_features(features: str | Path) -> Iterator[str]:
    """Yield lines about a folder: what was extracted and how, counts, bytes.

    Raises:
        FeaturesError: it is not a feature folder.
    """
    store = open_features(features)
    counts = Counter(store.statuses.values())
    entries = [entry for parts in store.entries.values() for entry in parts]
    num_planned = len(read_manifest(store.folder.manifest)) if store.folder.manifest.exists() else 0
    shards = list(store.folder.shards.glob("*.h5"))
    seconds = sum((entry.length - 1) / entry.fps for entry in entries if entry.length > 1)
    shape = " × ".join(map(str, store.row_shape))
    spec = store.spec
    yield f"{store.folder.root}"
    yield f"  backbone     {spec.backbone}, weights {store.extraction.weights}"
    yield f"  fingerprint  {store.fingerprint}"
    yield f"  features     {shape} {spec.feature_dtype} per frame, computed in {spec.precision}"
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
    for note, count in num_noted(store.entries).items():
        yield f"  note         {counted(count, 'video')}: {note}"


def show_video(features: str | Path, video_id: str) -> Iterator[str]:
    """Yield lines about one video of a folder.

    Raises:
        FeaturesError: it is not a feature folder, or has no such video.
    """
    store = open_features(features)
    if video_id not in store.entries:
        raise FeaturesError(
            f"{features}: video_id {video_id!r} has not been extracted; see its manifest.csv"
        )
    status = store.statuses[video_id]
    yield video_id
    for entry in store.entries[video_id]:
        if entry.status != "ok":
            yield f"  {entry.status:11}  {entry.reason}: {entry.message}"
        elif entry.message:
            yield f"  note         {entry.message}"
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
    """Check every byte of a folder: weights, plans, and each shard's table, checksums and values.

    Args:
        features: feature folder; writable only if shards are to be dropped.
        settings: by default `VerifySettings()`.
        console: for the faults; by default nothing is printed.

    Returns:
        the exit code: 1 if anything is damaged.

    Raises:
        FeaturesError: it is not a feature folder, a plan is damaged, or shards are to be dropped
            while a run is writing there.
    """
    settings = settings or VerifySettings()
    console = console or Console(quiet=True)
    folder = FeatureFolder(Path(features))
    extraction = read_extraction(folder)
    with locked(folder) if settings.drop else contextlib.nullcontext():
        tasks = {task.name: task for task in read_plans(folder, extraction.fingerprint)}
        shards = sorted(folder.shards.glob("*.h5"))
        faults = list(backbone_faults(folder, extraction))
        damaged = []
        with (
            ThreadPoolExecutor(num_cpus()) as pool,
            CountProgress("verify", "shards", len(shards), console) as progress,
        ):
            by_shard = pool.map(lambda path: list(shard_faults(path, extraction, tasks)), shards)
            for path, found in zip(shards, by_shard, strict=True):
                progress.count()
                faults += [fault.message for fault in found]
                if any(fault.is_damage for fault in found):
                    damaged.append(path)
        say(console, *faults)
        for path in damaged if settings.drop else ():
            path.unlink(missing_ok=True)
    num_missing = len(tasks) - len({path.stem for path in shards} & tasks.keys())
    if num_missing:
        say(console, f"{folder.root}: {num_missing:,} of {len(tasks):,} tasks have no shard yet")
    if not faults:
        say(console, f"{folder.root}: {len(shards):,} shards are sound")
        return _recompute(features, settings.recompute, console) if settings.recompute else EXIT_OK
    count = f"{len(damaged):,} of {len(shards):,} shards"
    if not damaged:
        result = f"{len(faults):,} faults, listed above, none of which --drop repairs"
    elif settings.drop:
        result = f"removed {count}; rerun the extract command, which writes them again"
    else:
        result = f"{count} are damaged; --drop removes them, so that extract writes them again"
    say(console, f"{folder.root}: {result}")
    return EXIT_WITH_FAILURES


def _recompute(features: str | Path, num_frames: int, console: Console) -> int:
    """Recompute a sample of features, and print the differences; return the exit code."""
    from .inference.recompute import recompute_sample  # needs torch, which the rest does not

    spec = read_extraction(FeatureFolder(Path(features))).spec
    if spec.is_imported:
        raise SettingsError(
            f"--recompute: the features in {features} were imported, {spec.backbone!r}; leave it "
            "out"
        )
    frames = recompute_sample(features, num_frames)
    cosines = [frame.cosine for frame in frames]
    num_videos = len({frame.video_id for frame in frames})
    say(
        console,
        f"{len(frames):,} features of {counted(num_videos, 'video')}, computed in "
        f"{spec.precision} and stored in {spec.feature_dtype}, against PyAV, PIL and float32, "
        "frame by frame",
        f"cosine   minimum {min(cosines):.6f}, mean {np.mean(cosines):.6f}",
        f"error    maximum {max(frame.error for frame in frames):.4g}, "
        f"mean {np.mean([frame.error for frame in frames]):.4g}",
        "smallest cosines",
    )
    for frame in sorted(frames, key=lambda frame: frame.cosine)[:NUM_LISTED]:
        say(
            console,
            f"  {frame.video_id} frame {frame.frame_index} {frame.view}: "
            f"cosine {frame.cosine:.6f}, error {frame.error:.4g}",
        )
    if min(cosines) < MIN_COSINE:
        say(console, f"{features}: cosines below {MIN_COSINE}: these features are wrong")
        return EXIT_WITH_FAILURES
    return EXIT_OK


@click.group("features")
def group() -> None:
    """Show, verify and export a feature folder, or import the features of other programs."""


@group.command("show")
@click.argument("features")
@click.argument("video_id", nargs=-1)
@console_options
def show_command(features: str, video_id: tuple[str, ...], console: Console) -> int:
    """Show the contents of FEATURES, or of each VIDEO_ID in it."""
    if not video_id:
        say(console, *show_features(features))
    for one in video_id:
        say(console, *show_video(features, one))
    return EXIT_OK


@group.command("verify")
@click.argument("features")
@settings_options(VerifySettings)
def verify_command(features: str, console: Console, **options: Any) -> int:
    """Check every byte of FEATURES: checksums, values, counts against the plan."""
    return verify_features(features, VerifySettings(**options), console=console)


@group.command("export")
@click.argument("features")
@click.argument("folder")
@click.argument("video_id", nargs=-1)
@settings_options(ExportSettings)
def export_command(
    features: str, folder: str, video_id: tuple[str, ...], console: Console, **options: Any
) -> int:
    """Write FEATURES, or those of each VIDEO_ID, into FOLDER.

    For action-localization tools such as ActionFormer and OpenTAD, give --fps.
    """
    settings = ExportSettings(**options)
    return export_features(features, folder, video_id, settings, console=console).exit_code


@group.command("import")
@click.argument("manifest")
@click.argument("features")
@settings_options(ImportSettings)
def import_command(manifest: str, features: str, console: Console, **options: Any) -> int:
    """Write arrays of other programs into the feature folder FEATURES, to train on.

    The paths of MANIFEST are the arrays, [T, D] each: .npy, or .npz, .pt and .h5 with --key. The
    same command resumes, and adds new rows.
    """
    return import_features(manifest, features, ImportSettings(**options), console=console).exit_code

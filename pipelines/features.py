"""`vtnpipe features show`: what lies in a feature folder."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..manifests.errors import FeaturesError
from ..manifests.videos import read_manifest


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

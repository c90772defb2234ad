"""Verification of a feature folder: checksums and values of every byte, which opening skips."""

from collections.abc import Iterator, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from .atomic import read_through, sha256_of
from .errors import DamagedShardError, FeaturesError
from .feature_folder import Extraction, FeatureFolder
from .plan import Task
from .shards import ROW_DTYPES, Entry, Shard, Status, checksum, read_shard, rows_of
from .times import frame_rate


def backbone_faults(folder: FeatureFolder, extraction: Extraction) -> Iterator[str]:
    """Yield the faults of the backbone's weights in a feature folder."""
    if extraction.spec.is_imported:
        return
    try:
        digest = sha256_of(folder.backbone)
    except OSError as error:
        yield f"cannot read {folder.backbone} ({error.strerror}); restore it"
        return
    if digest != extraction.spec.weights_digest:
        yield f"{folder.backbone}: its SHA-256 is not the one in extraction.json; restore it"


class Fault(NamedTuple):
    """Fault of a file.

    Attributes:
        message: description of the fault.
        is_damage: whether it is damage of a shard that extract can write again.
    """

    message: str
    is_damage: bool


def shard_faults(path: Path, extraction: Extraction, tasks: Mapping[str, Task]) -> Iterator[Fault]:
    """Yield the faults of a shard: in its format, table, checksums or values, or against the plan.

    Args:
        path: `PPP-TTTTT.h5`.
        extraction: contents of the folder's extraction.json.
        tasks: the folder's tasks by name.
    """
    try:
        read_through(path)  # a disk error is no damage of the shard
    except OSError as error:
        yield Fault(
            f"cannot read {path} ({error.strerror}); check the disk and its mode",
            is_damage=False,
        )
        return
    if path.stem not in tasks:
        yield Fault(f"{path}: its task is in no plan; move it elsewhere", is_damage=False)
        return
    try:
        shard = read_shard(path, extraction.fingerprint)
    except FeaturesError as error:
        yield Fault(str(error), is_damage=isinstance(error, DamagedShardError))
        return
    found = (str(shard.dtype), shard.row_shape)
    expected = (extraction.spec.feature_dtype, extraction.row_shape)
    messages = [
        *([f"its features are {found}, but the folder has {expected}"] * (found != expected)),
        *_plan_faults(shard, tasks[path.stem]),
    ]
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for entry in shard.entries:
            messages += [
                f"video_id {entry.id!r}: {one}" for one in _entry_faults(shard, data, entry)
            ]
    yield from (Fault(f"{path}: {message}", is_damage=True) for message in messages)


def _plan_faults(shard: Shard, task: Task) -> Iterator[str]:
    stored = [(entry.id, entry.part, entry.num_parts) for entry in shard.entries]
    if stored != [(row.video_id, row.part, row.num_parts) for row in task.rows]:
        yield "its videos are not those of its task in the plan"
        return
    for entry, row in zip(shard.entries, task.rows, strict=True):
        if row.cut is not None and entry.status == "ok" and entry.length != row.num_frames:
            yield (
                f"part {entry.part} of video_id {entry.id!r} has {entry.length} "
                f"frames, but {row.num_frames} were planned"
            )


def _entry_faults(shard: Shard, data: mmap, entry: Entry) -> Iterator[str]:
    features, frame_index, timestamps = (
        rows_of(shard, data, entry, name) for name in ("features", *ROW_DTYPES)
    )
    if checksum(features, frame_index, timestamps) != entry.crc32:
        yield "its checksum is wrong: bytes changed on the disk"
        return
    if not np.isfinite(features).all():
        yield "a feature is not finite"
    if not np.isfinite(timestamps).all():
        yield "a timestamp is not finite"
    elif (np.diff(timestamps) <= 0).any():
        yield "its timestamps are not strictly increasing"
    if (np.diff(frame_index) <= 0).any() or (frame_index[:1] != entry.first_frame).any():
        yield "its frame_index is not strictly increasing"
    if entry.status not in get_args(Status) or (entry.status == "failed") != (entry.length == 0):
        yield f"its status is {entry.status!r}, with {entry.length} frames"
    if not np.array_equal(entry.fps, frame_rate(timestamps), equal_nan=True):
        yield f"its fps is {entry.fps:g}, but {frame_rate(timestamps):g} by its timestamps"

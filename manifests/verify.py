"""A feature folder, checked to the last byte: what opening it takes on trust is computed again."""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from .atomic import read_through, sha256_of
from .errors import DamagedShardError, FeaturesError
from .feature_folder import FeatureFolder
from .plan import Task
from .shards import ROW_DTYPES, Entry, Shard, Status, checksum, read_shard, rows_of
from .times import frame_rate


def faults_of_backbone(folder: FeatureFolder, extraction: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the weights that lie with the features.

    Args:
        folder: the feature folder.
        extraction: what its extraction.json says.
    """
    try:
        digest = sha256_of(folder.backbone)
    except OSError as error:
        yield f"{folder.backbone}: cannot be read ({error.strerror}); put it back"
        return
    if digest != extraction["identity"]["weights_digest"]:
        yield f"{folder.backbone}: its SHA-256 is not the one in extraction.json; put it back"


class Fault(NamedTuple):
    """What is wrong with a file.

    Attributes:
        message: for a person.
        is_damage: of a shard of the folder's plan, which extract can make again.
    """

    message: str
    is_damage: bool


def faults_of_shard(
    path: Path, extraction: Mapping[str, Any], tasks: Mapping[str, Task]
) -> Iterator[Fault]:
    """What is wrong with a shard: its format, its table, its checksums, its values, or that it is
    not what the plan says.

    Args:
        path: `PPP-TTTTT.h5`.
        extraction: what the folder's extraction.json says.
        tasks: of the folder, by name.
    """
    try:
        read_through(path)  # what the disk does not give is no damage of the shard
    except OSError as error:
        yield Fault(
            f"{path}: cannot be read ({error.strerror}); check the disk, and its mode",
            is_damage=False,
        )
        return
    if path.stem not in tasks:
        yield Fault(f"{path}: no plan has its task; move it elsewhere", is_damage=False)
        return
    try:
        shard = read_shard(path, extraction["fingerprint"])
    except FeaturesError as error:
        yield Fault(str(error), is_damage=isinstance(error, DamagedShardError))
        return
    found = (str(shard.dtype), list(shard.row_shape))
    expected = (extraction["identity"]["store"], extraction["row_shape"])
    messages = [
        *([f"its features are {found}, not {expected} as the folder's"] * (found != expected)),
        *_against_plan(shard, tasks[path.stem]),
    ]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for entry in shard.entries:
            messages += [f"video_id {entry.id!r}: {one}" for one in _of_entry(shard, data, entry)]
    yield from (Fault(f"{path}: {message}", is_damage=True) for message in messages)


def _against_plan(shard: Shard, task: Task) -> Iterator[str]:
    stored = [(entry.id, entry.part, entry.num_parts) for entry in shard.entries]
    if stored != [(row.video_id, row.part, row.num_parts) for row in task.rows]:
        yield "it holds other videos than its task in the plan"
        return
    for entry, row in zip(shard.entries, task.rows, strict=True):
        if row.cut is not None and entry.status == "ok" and entry.length != row.num_frames:
            yield (
                f"part {entry.part} of video_id {entry.id!r} has {entry.length} "
                f"frames, but {row.num_frames} were planned"
            )


def _of_entry(shard: Shard, data: mmap.mmap, entry: Entry) -> Iterator[str]:
    features, frame_index, timestamps = (
        rows_of(shard, data, entry, name) for name in ("features", *ROW_DTYPES)
    )
    if checksum(features, frame_index, timestamps) != entry.crc32:
        yield "its checksum is wrong: bytes have changed on the disk"
        return
    if not np.isfinite(features).all():
        yield "a feature is not finite"
    if not np.isfinite(timestamps).all():
        yield "a timestamp is not finite"
    if (np.diff(frame_index) <= 0).any() or (frame_index[:1] != entry.first_frame).any():
        yield "its frames are not in order"
    if entry.status not in get_args(Status) or (entry.status == "failed") != (entry.length == 0):
        yield f"its status is {entry.status!r}, with {entry.length} frames"
    if not np.array_equal(entry.fps, frame_rate(timestamps), equal_nan=True):
        yield f"its fps is {entry.fps:g}, but {frame_rate(timestamps):g} by its timestamps"

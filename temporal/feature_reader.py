"""Feature reader: reads clips from memory-mapped shards, or from a copy in RAM or on a GPU."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from ..manifests.errors import FeaturesError, SettingsError
from ..manifests.feature_store import FeatureStore
from .dataset import Read
from .time_table import Clips, Frames, Times

Preload = Literal["auto", "none", "ram", "gpu"]

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
READ_FRAMES = 4096  # frames that are gathered from the table at once, unless a batch has more
FITTING_SHARE = 0.5  # largest share of the free memory that copied features may take


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Reader of stored features; a `ClipReader`.

    Attributes:
        store: features of the feature folder.
        table: [R x V, D] in the store's dtype: all R frames of the videos in `starts`, one video
            after the other, with the V views of a frame together; None to read from the shards.
        starts: video_id → number of the video's first frame in the table.
    """

    store: FeatureStore
    table: Tensor | None = None
    starts: dict[str, int] = field(default_factory=dict)

    @property
    def num_views(self) -> int:
        """Number of stored views of each frame."""
        return self.store.num_views

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """Return frame_index [T] and timestamps [T] in seconds of a video's frames."""
        return self.store.times(video_id)

    def close(self) -> None:
        """Do nothing: no reading of arrays hangs."""

    def read(self, clips: Clips, sizes: Sequence[int]) -> Iterator[Read]:
        """Read batches of features [B, T, D] in the store's dtype, padded with zeros.

        They are on the device of the table, or on the CPU if they are read from the shards.

        Raises:
            FeaturesError: a feature in the shards is not finite; `preload` has checked the table.
        """
        if self.table is None:
            yield from map(self._from_shards, clips.batches(sizes))
            return
        _, frames, views = clips
        starts = np.array([self.starts[video_id] for video_id in clips.video_ids])
        rows = (frames.values + starts.repeat(frames.counts)) * self.num_views
        rows += views.repeat(frames.counts)
        bounds = frames.offsets[np.cumsum([0, *sizes])]
        features, first, last, number = self.table[:0], 0, 0, 0
        for size, (begin, end) in zip(sizes, pairwise(bounds.tolist()), strict=True):
            if end > last:  # gather as many batches at once as make READ_FRAMES
                most = int(bounds[bounds <= begin + READ_FRAMES].max())
                first, last = begin, max(end, most)
                index = torch.from_numpy(rows[first:last]).to(self.table.device)
                features = self.table.index_select(0, index)
            read = features[begin - first : end - first]
            if frames.width is None:
                read = _padded(read, frames.rows(number, number + size).mask)
            yield Read(read.view(size, -1, read.shape[-1]))
            number += size

    def _from_shards(self, clips: Clips) -> Read:
        """Read a batch from the shards."""
        shape = clips.frames.mask.shape
        features = np.zeros((*shape, self.store.row_shape[-1]), self.store.dtype)
        for row, (video_id, frames, view) in zip(features, clips.each(), strict=True):
            row[: len(frames)] = _view(self.store.take(video_id, frames), view)
        if not np.isfinite(features).all():
            for video_id, row in zip(clips.video_ids, features, strict=True):
                check_finite(video_id, row, self.store)
        return Read(torch.from_numpy(features))


def _padded(features: Tensor, mask: npt.NDArray[np.bool_]) -> Tensor:
    """Return the features [K, D] of clips, end to end, as a batch [B, T, D] padded with zeros."""
    padded = features.new_zeros(*mask.shape, features.shape[-1])
    padded[torch.from_numpy(mask).to(features.device)] = features
    return padded


def _view(features: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """Return one view, [T, D], of features [T, D] or [T, V, D]."""
    return features if features.ndim == 2 else features[:, view]


def check_finite(video_id: str, features: npt.NDArray[Any], store: FeatureStore) -> None:
    """Refuse features that contain NaN or infinity.

    Args:
        video_id: id of the video, for the message.
        features: features of the video, of any shape.
        store: features of the feature folder, for the message.

    Raises:
        FeaturesError: a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise FeaturesError(
            f"video_id {video_id!r}: a stored feature is not finite, in {store.folder.root}; "
            "remove its shard with `vtnpipe features verify FEATURES --drop`, and extract again"
        )


def num_table_bytes(store: FeatureStore, video_ids: Iterable[str]) -> int:
    """Return the size in bytes of a table of videos, each counted once."""
    row_bytes = int(np.prod(store.row_shape)) * store.dtype.itemsize
    return row_bytes * sum(store.num_frames(video_id) for video_id in set(video_ids))


def preload(store: FeatureStore, video_ids: Iterable[str], device: str) -> FeatureReader:
    """Copy the features of videos into memory, and return a reader of the copy.

    Args:
        store: features of the feature folder.
        video_ids: ids of the videos to copy; a repeated id is copied once.
        device: device of the copy: `cpu`, `cuda` or `cuda:N`.

    Raises:
        FeaturesError: a feature is not finite.
    """
    chosen = dict.fromkeys(video_ids)
    starts: dict[str, int] = {}
    num_frames = 0
    for video_id in chosen:
        starts[video_id] = num_frames
        num_frames += store.num_frames(video_id)
    dtype = torch.from_numpy(np.empty(0, store.dtype)).dtype
    num_views, dim = store.num_views, store.row_shape[-1]
    table = torch.empty(num_frames * num_views, dim, dtype=dtype, device=device)
    for video_id, start in starts.items():
        features = store[video_id].features
        check_finite(video_id, features, store)
        rows = torch.from_numpy(features.reshape(-1, dim).copy())
        table[start * num_views : start * num_views + len(rows)] = rows
    return FeatureReader(store, table, starts)


def choose_place(
    preload: Preload, num_bytes: int, device: str, *, num_processes: int = 1
) -> tuple[str | None, str]:
    """Choose the device to copy features to, if any.

    `auto` takes the model's GPU, else RAM, else the shards: the first that has enough free memory.

    Args:
        preload: value of `--preload`.
        num_bytes: size of the features.
        device: device of the model.
        num_processes: number of processes on this machine, each with its own copy.

    Returns:
        A device, or None for reading from the shards; and the reason in words.

    Raises:
        SettingsError: the features do not fit in the requested memory, or there is no GPU.
    """
    size = f"{num_bytes / 2**30:,.2f} GiB of features"
    places = {"ram": "cpu"} if device == "cpu" else {"gpu": device, "ram": "cpu"}
    if preload == "none":
        return None, f"{size} are read from the shards: --preload none"
    if preload != "auto":
        if preload not in places:
            raise SettingsError(
                "--preload gpu: the model is on the CPU; give --preload ram, none or auto"
            )
        places = {preload: places[preload]}
    found = []
    for name, place in places.items():
        count = num_processes if place == "cpu" else 1
        free = available_bytes(place)
        found.append(f"{free / 2**30:,.1f} GiB are free in {name.upper()}")
        if num_bytes * count <= FITTING_SHARE * free:
            return place, f"{size} are copied to {name.upper()}"
    reason = f"too large to copy ({', '.join(found)})"
    if preload != "auto":
        raise SettingsError(f"--preload {preload}: {size} are {reason}; give --preload none")
    return None, f"{size} are read from the shards: {reason}"


def available_bytes(device: str) -> int:
    """Return the free memory in bytes of a GPU, or of the host.

    On the host, the limits of the control groups that contain this process count, too.
    """
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_free_of_groups()])


def _free_of_groups() -> Iterator[int]:
    """Yield the free memory of each control group (version 2) of this process, innermost first."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for name in (line[4:] for line in lines if line.startswith("0::/")):
        group = CGROUPS / name
        for folder in (group, *group.parents):
            if not folder.is_relative_to(CGROUPS):
                break
            try:
                limit, used = (
                    (folder / f"memory.{what}").read_text().strip() for what in ("max", "current")
                )
            except OSError:  # the root group has no such files
                continue
            if limit != "max":
                yield max(0, int(limit) - int(used))

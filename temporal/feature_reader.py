"""Reading features: from the memory-mapped shards, or from a copy of all of them in the memory of
the host or of a GPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from ..manifests.errors import FeaturesError, SettingsError
from ..manifests.feature_store import FeatureStore
from .choices import Preload
from .clips import Clip, Frames, Times
from .dataset import Read

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
FITTING_SHARE = 0.5  # of the free memory, that features may take


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """Reads frames of stored videos.

    Attributes:
        store: the feature folder.
        table: [R x V, D] of the store's dtype: all frames of the videos in `starts`, one after the
            other, each frame's views together; None to read from the shards.
        starts: video_id → its first frame in the table.
    """

    store: FeatureStore
    table: Tensor | None = None
    starts: dict[str, int] = field(default_factory=dict)

    @property
    def num_views(self) -> int:
        """Of those stored."""
        return self.store.num_views

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """frame_index [T] and timestamps [T] of a video."""
        return self.store.times(video_id)

    def num_frames(self, video_id: str) -> int:
        """T, of a video."""
        return self.store.num_frames(video_id)

    def read(self, clips: Sequence[Clip]) -> Read:
        """Features [B, T, D] float32, padded with zeros; on the device where the table lies.

        Raises:
            FeaturesError: one of them is not finite.
        """
        longest = max(len(frames) for _, frames, _ in clips)
        if self.table is None:
            features = np.zeros((len(clips), longest, self.store.row_shape[-1]), np.float32)
            for row, (video_id, frames, view) in zip(features, clips, strict=True):
                row[: len(frames)] = _view(self.store.take(video_id, frames), view)
            if not np.isfinite(features).all():
                for (video_id, _, _), row in zip(clips, features, strict=True):
                    check_finite(video_id, row, self.store)
            return Read(torch.from_numpy(features))
        rows = np.full((len(clips), longest), -1)
        for row, (video_id, frames, view) in zip(rows, clips, strict=True):
            row[: len(frames)] = (self.starts[video_id] + frames) * self.store.num_views + view
        index = torch.from_numpy(rows).to(self.table.device)
        read = self.table[index.clamp(min=0)].float()
        return Read(read.masked_fill_((index < 0)[..., None], 0.0))


def _view(features: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """[T, D] of [T, D] or [T, V, D]."""
    return features if features.ndim == 2 else features[:, view]


def check_finite(video_id: str, features: npt.NDArray[Any], store: FeatureStore) -> None:
    """Refuses features that hold NaN or infinity.

    Raises:
        FeaturesError: they do.
    """
    if not np.isfinite(features).all():
        raise FeaturesError(
            f"video_id {video_id!r}: a stored feature is not finite, in {store.folder.root}; "
            "`vtnpipe features verify FEATURES --drop` removes its shard, and extract makes "
            "it again"
        )


def num_table_bytes(store: FeatureStore, video_ids: Iterable[str]) -> int:
    """How large a table of these videos is."""
    row_bytes = int(np.prod(store.row_shape)) * store.dtype.itemsize
    return row_bytes * sum(store.num_frames(video_id) for video_id in set(video_ids))


def preload(store: FeatureStore, video_ids: Iterable[str], device: str) -> FeatureReader:
    """Copies videos into memory.

    Args:
        store: the feature folder.
        video_ids: those to copy, each once however often it is named.
        device: where to: `cpu`, `cuda` or `cuda:N`.

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
    """Where features are to be copied, and why.

    Args:
        preload: what is asked for.
        num_bytes: of the features.
        device: that the model is on.
        num_processes: on this machine, each with a copy.

    Returns:
        a device, or None for the shards; and the reason in words.

    Raises:
        SettingsError: they don't fit where they are asked to be.
    """
    size = f"{num_bytes / 2**30:,.2f} GiB of features"
    places = {"ram": "cpu"} if device == "cpu" else {"gpu": device, "ram": "cpu"}
    if preload == "none":
        return None, f"{size} are read from the shards: asked for"
    if preload != "auto":
        if preload not in places:
            raise SettingsError("--preload gpu with a model on the CPU; give ram, none or auto")
        places = {preload: places[preload]}
    found = []
    for name, place in places.items():
        count = num_processes if place == "cpu" else 1
        free = available_bytes(place)
        found.append(f"{free / 2**30:,.1f} GiB are free in {name.upper()}")
        if num_bytes * count <= FITTING_SHARE * free:
            return place, f"{size} are copied to {name.upper()}"
    reason = f"too many to copy, {', '.join(found)}"
    if preload != "auto":
        raise SettingsError(f"--preload {preload}: {size}: {reason}; give --preload none")
    return None, f"{size} are read from the shards: {reason}"


def available_bytes(device: str) -> int:
    """Free memory of a GPU, or of the host and the control group that this process is in."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([int(psutil.virtual_memory().available), *_free_of_groups()])


def _free_of_groups() -> Iterator[int]:
    """What each control group (version 2) leaves that this process is in, from its own upwards."""
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
            except OSError:  # the root group has none
                continue
            if limit != "max":
                yield max(0, int(limit) - int(used))

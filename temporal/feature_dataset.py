"""Dataset of stored features for training loops of your own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..manifests.feature_store import FeatureStore
from ..manifests.manifest import read_manifest


class FeatureDataset(Dataset[dict[str, Any]]):
    """The videos of a feature folder as tensors.

    An item has `features` [T, D] (or [T, V, D]), `timestamps` [T] float64 in seconds, `video_id`
    and, if the video has a label, `label`, its index in `class_names`.

    Args:
        store: features, from `vtnpipe.open_features`.
        split: name of the split; None for all videos of the folder's manifest.
        dtype: dtype of the features.
        class_names: names of the classes, of which labels are indices; by default the sorted labels
            of the folder's manifest, of all splits.

    Examples:
        >>> train = vtnpipe.FeatureDataset(store, split="train")  # doctest: +SKIP
        >>> loader = torch.utils.data.DataLoader(
        ...     train, batch_size=16, shuffle=True, collate_fn=train.collate
        ... )  # doctest: +SKIP
        >>> for batch in loader:
        ...     logits = model(batch["features"], mask=batch["mask"])  # doctest: +SKIP
    """

    def __init__(
        self,
        store: FeatureStore,
        split: str | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        class_names: Sequence[str] | None = None,
    ) -> None:
        rows = read_manifest(store.folder.manifest)
        names = sorted({row.label for row in rows if row.label})
        self.class_names = names if class_names is None else list(class_names)
        self._store = store
        self._dtype = dtype
        self._rows = [row for row in rows if row.video_id in store and split in (None, row.split)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        video = self._store[row.video_id]
        item: dict[str, Any] = {
            "video_id": row.video_id,
            "features": torch.from_numpy(video.features.copy()).to(self._dtype),
            "timestamps": torch.from_numpy(video.timestamps.copy()),
        }
        if row.label:
            item["label"] = self.class_names.index(row.label)
        return item

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return items as a batch, padded with zeros.

        `features` [B, T, D], `timestamps` [B, T], `mask` [B, T] bool (where there is a frame),
        `video_id`, a list, and `label` [B] int64 if all have one.
        """
        lengths = torch.tensor([len(item["timestamps"]) for item in items])
        batch: dict[str, Any] = {
            "video_id": [item["video_id"] for item in items],
            "mask": torch.arange(int(lengths.max())) < lengths[:, None],
        }
        for name in ("features", "timestamps"):
            tensors: list[Tensor] = [item[name] for item in items]
            batch[name] = pad_sequence(tensors, batch_first=True)
        if all("label" in item for item in items):
            batch["label"] = torch.tensor([item["label"] for item in items])
        return batch

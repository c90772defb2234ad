"""Logits of stored features; and of a split, from its features or its videos."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from ...extract.decode.sampling import Sampling
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow, read_manifest
from ...manifests.shards import open_features
from ...temporal.dataset import ClipDataset, EvenClips
from ...temporal.distributed import Accelerator
from ...temporal.feature_reader import FeatureReader
from ...temporal.inference import predict_logits
from ...temporal.run_folder import RunFolder
from ...temporal.splits import (
    UsableRows,
    remedy_for_features,
    rows_of_split,
    usable_rows,
)
from ...temporal.tasks import read_targets
from ..models.model_folder import NetworkConfig, check_features, load_temporal
from ..models.network import VideoTransformerNetwork
from ..processors import num_cpus_of_process
from .clip_reader import IndexedVideos, index_videos
from .video_classifier import (
    Video,
    VideoClassifier,
    clips_of_videos,
    none_decoded,
    score,
    whole_videos,
)

if TYPE_CHECKING:
    from ..evaluate import EvaluateSettings


class ScoredSplit(NamedTuple):
    """What was scored.

    Attributes:
        usable: the rows.
        logits: [N, C].
        targets: see `temporal/tasks.py`.
        source: the features' fingerprint, or how the videos were seen.
        faults: videos that could not be decoded, or not all of them, and why.
    """

    usable: UsableRows
    logits: Tensor
    targets: Tensor
    source: str
    faults: tuple[str, ...] = ()


def score_features(
    files: RunFolder,
    config: NetworkConfig,
    source: str | Path,
    settings: "EvaluateSettings",
    accelerator: Accelerator,
) -> ScoredSplit:
    """Logits of a split's stored features."""
    store = open_features(source)
    check_features(config, store.extraction["identity"], store.folder.root)
    usable = usable_rows(
        store.statuses,
        read_manifest(settings.manifest or store.folder.manifest),
        settings.split,
        what="features",
        remedy=remedy_for_features(store.folder),
        drop_partial=settings.drop_partial,
    )
    targets = read_targets(usable.rows, config.class_names, config.temporal.task)
    clips = EvenClips(
        sampling=settings.sampling,
        num_clips=max(1, settings.clips),
        shuffle_seed=settings.shuffle_seed,
    )
    logits = logits_of_features(
        accelerator.prepare_model(load_temporal(files, config), evaluation_mode=True),
        store,
        usable.video_ids,
        clips=clips,
        position_fps=config.temporal.position_fps,
        batch_size=settings.batch_size,
        accelerator=accelerator,
    )
    return ScoredSplit(usable, logits, targets, f"features {store.extraction['fingerprint']}")


def logits_of_features(
    temporal: nn.Module,
    store: FeatureStore,
    video_ids: Sequence[str],
    *,
    clips: EvenClips | None = None,
    position_fps: float | None,
    batch_size: int = 1,
    accelerator: Accelerator,
) -> Tensor:
    """Logits [N, C] of stored videos.

    Args:
        temporal: the temporal model, prepared by `accelerator`.
        store: made with the model's backbone; it has all of the videos.
        video_ids: of the videos.
        clips: whose logits are averaged; by default every frame at once.
        position_fps: of the model.
        batch_size: clips at once, in each process.
        accelerator: see `temporal/distributed.py`.

    Raises:
        FeaturesError: a feature is not finite.
    """
    dataset = ClipDataset(
        FeatureReader(store),
        video_ids,
        torch.zeros(len(video_ids)),  # nobody asks for targets
        clips or EvenClips(),
        position_fps=position_fps,
    )
    return predict_logits(temporal, dataset, batch_size=batch_size, accelerator=accelerator)


def score_videos(
    files: RunFolder,
    config: NetworkConfig,
    source: str | Path,
    settings: "EvaluateSettings",
    accelerator: Accelerator,
) -> ScoredSplit:
    """Logits of a split's videos, which are decoded."""
    rows = rows_of_split(read_manifest(source), settings.split)
    read_targets(rows, config.class_names, config.temporal.task)  # refused before the work
    network = VideoTransformerNetwork.from_pretrained(files.root).to(accelerator.device)
    classify = VideoClassifier(
        network=network,
        mode="end-to-end" if settings.mode == "end-to-end" else "chunked",
        chunk_frames=settings.chunk_frames,
        num_children=num_cpus_of_process(),
        shuffle_seed=settings.shuffle_seed,
    )
    videos, faults = _videos_to_see(rows, config, settings)
    scored = score(classify, videos, accelerator)
    faults |= dict(scored.faults)
    assert scored.rows is not None
    names = [videos[number].name for number in scored.rows.tolist()]
    logits = dict(zip(names, scored.logits, strict=True))
    usable = usable_rows(
        {name: "partial" if name in faults else "ok" for name in logits},
        rows,
        settings.split,
        what="frames",
        remedy="leave out --drop-partial, or mend the files",
        drop_partial=settings.drop_partial,
    )
    return ScoredSplit(
        usable,
        torch.stack([logits[row.video_id] for row in usable.rows]),
        read_targets(usable.rows, config.class_names, config.temporal.task),
        f"videos, {classify.mode}",
        tuple(f"{name}: {fault}" for name, fault in faults.items()),
    )


def _videos_to_see(
    rows: list[VideoRow], config: NetworkConfig, settings: "EvaluateSettings"
) -> tuple[list[Video], dict[str, str]]:
    """What is to be decoded of each row, and what of them can't be: video_id → why."""
    sampling = Sampling.from_identity(config.identity)
    if not settings.clips:
        return whole_videos(rows, sampling, settings.decoder), {}
    with TemporaryDirectory(prefix="vtnpipe-evaluate-") as folder:
        index = index_videos(Path(folder) / "index.safetensors", rows, Console(quiet=True))
        by_id = {row.video_id: row for row in rows}
        indexed = IndexedVideos(
            rows=by_id, index=index, sampling=sampling, decoder=settings.decoder
        )
        failures = {one.video_id: one for one in indexed.failures()}
        readable = [
            row
            for row in rows
            if row.video_id not in failures or failures[row.video_id].status == "partial"
        ]
        if not readable:
            first = failures[rows[0].video_id]
            raise none_decoded(len(rows), f"{first.reason}: {first.message}")
        videos = clips_of_videos(readable, indexed, settings.sampling, settings.clips)
    return videos, {name: f"{one.reason}: {one.message}" for name, one in failures.items()}

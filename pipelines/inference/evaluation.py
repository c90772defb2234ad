"""Evaluation: logits of a split's videos, from stored features or from the video files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Literal, NamedTuple
from urllib.parse import quote

import torch
from rich.console import Console
from torch import Tensor, nn

from ...extract.cores import num_cpus_per_process
from ...extract.decode.frames import Decoder
from ...extract.decode.sampling import Sampling
from ...manifests.errors import SettingsError
from ...manifests.feature_store import FeatureStore, open_features
from ...manifests.groups import check_group
from ...manifests.manifest import VideoRow, read_manifest
from ...temporal.baselines import Baselines
from ...temporal.checkpoint import RunFolder, read_weights
from ...temporal.clips import ALL_FRAMES, ClipSampling
from ...temporal.dataset import ClipDataset, EvenClips
from ...temporal.distributed import Accelerator, Precision
from ...temporal.feature_reader import FeatureReader
from ...temporal.inference import check_logits, predict_logits
from ...temporal.segmentation import Decoding, Method
from ...temporal.splits import (
    UsableRows,
    remedy_for_features,
    rows_of_split,
    usable_rows,
)
from ...temporal.tasks import read_targets
from ..models.model_folder import NetworkConfig, check_features
from ..models.network import VideoTransformerNetwork, load_temporal
from ..settings import (
    at_least,
    check_settings,
    check_unset,
    chunk_frames_setting,
    clip_frames_setting,
    clip_seconds_setting,
    decoder_setting,
    device_setting,
    drop_partial_setting,
    manifest_setting,
    seed_setting,
    setting,
)
from .clip_reader import IndexedVideos, index_videos
from .segmentation import (
    decoding_of,
    decoding_setting,
    min_seconds_setting,
    transition_cost_setting,
)
from .video_classifier import (
    VideoClassifier,
    VideoToClassify,
    clips_of_videos,
    none_decoded,
    score_videos,
    whole_videos,
)

PAPER_SAMPLING = ClipSampling(num_frames=250, seconds=10.0, spacing="linspace")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of `vtnpipe evaluate`."""

    split: str = setting("val", help="Split of the manifest to score.")
    manifest: str | None = manifest_setting()
    drop_partial: bool = drop_partial_setting()
    weights: Literal["kept", "last"] = setting(
        "kept", help="Weights of a run: those of the epoch that it kept, or of its last one."
    )
    shuffle_frames: bool = setting(
        False,
        help="Shuffle the frames of each video, to see what their order contributes.",
    )
    seed: int = seed_setting("Seed of that order, and of the resamples for the intervals.")
    clips: int = setting(
        0,
        help="Number of evenly spaced clips whose logits are averaged; 0: every frame at once.",
        check=at_least(0),
    )
    protocol: Literal["all", "paper"] = setting(
        "all",
        help="all: every frame of a video; paper: 250 frames evenly over its first 10 s, as in the "
        "authors' test.",
    )
    clip_frames: int = clip_frames_setting("Frames per clip.")
    clip_seconds: float = clip_seconds_setting()
    segments: str | None = setting(
        None,
        help="Segments of the videos, for the tasks on frames; by default those of the training.",
        metavar="FILE",
    )
    decoding: Method = decoding_setting()
    transition_cost: float = transition_cost_setting()
    min_seconds: float = min_seconds_setting()
    bootstrap: int = setting(
        1000, help="Number of resamples for the 95% intervals; 0: no intervals.", check=at_least(0)
    )
    group: str | None = setting(
        None,
        help="Groups of dependent videos, such as recordings, for the intervals: file (the same "
        "path), or a regular expression searched for in video_id.",
        metavar="file|REGEX",
    )
    precision: Precision = setting(
        "float32", help="Precision of the computation; weights stay float32."
    )
    mode: Literal["auto", "features", "chunked", "end-to-end"] = setting(
        "auto",
        help="auto: features of a feature folder, chunked for a manifest; end-to-end keeps all "
        "frames of a video in memory.",
    )
    chunk_frames: int = chunk_frames_setting()
    decoder: Decoder = decoder_setting()
    device: str = device_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        check_group(self.group)
        decoding_of(self)  # raises
        if self.protocol == "paper":
            check_unset(self, ["clips"], "--protocol paper has one clip per video")
        if not self.clips:
            check_unset(self, ["clip_frames", "clip_seconds"], "has no effect without --clips")
        elif self.decoder == "decord":
            raise SettingsError(
                "--decoder decord with --clips: decord cannot start exactly in the middle of a "
                "file; give auto or pyav"
            )
        if self.mode == "end-to-end":
            check_unset(self, ["chunk_frames"], "--mode end-to-end has no chunks")

    @property
    def decoding_options(self) -> Decoding:
        """Options of decoding, for the tasks on frames."""
        return decoding_of(self)

    @property
    def sampling(self) -> ClipSampling:
        """Clip sampling; whole videos if `clips` is 0."""
        if self.protocol == "paper":
            return PAPER_SAMPLING
        if not self.clips:
            return ALL_FRAMES
        return ClipSampling(num_frames=self.clip_frames, seconds=self.clip_seconds)

    @property
    def shuffle_seed(self) -> int | None:
        """Seed of the order of frames; None for their own order."""
        return self.seed if self.shuffle_frames else None

    @property
    def predictions_name(self) -> str:
        """File name, without extension, of the predictions: the split, and what differs."""
        name = quote(self.split, safe="") or "all"
        name += "+last" if self.weights == "last" else ""
        name += "+paper" if self.protocol == "paper" else ""
        name += f"+{self.clips}clips" if self.clips else ""
        return name + ("+shuffled" if self.shuffle_frames else "")


class ScoredSplit(NamedTuple):
    """Logits of a split's videos.

    Attributes:
        usable: rows of the split.
        logits: [N, C].
        targets: [N] or [N, C], see `temporal/tasks.py`.
        source: fingerprint of the features, or mode of inference of the videos.
        baselines: logits [N, C] of each baseline; empty for videos.
        faults: videos that could not be decoded completely, and why.
    """

    usable: UsableRows
    logits: Tensor
    targets: Tensor
    source: str
    baselines: Mapping[str, Tensor] = MappingProxyType({})
    faults: tuple[str, ...] = ()


def score_feature_split(
    files: RunFolder,
    config: NetworkConfig,
    source: str | Path,
    settings: EvaluateSettings,
    accelerator: Accelerator,
) -> ScoredSplit:
    """Compute the logits of a split's videos from stored features."""
    store = open_features(source)
    check_features(config, store.spec, store.folder.root)
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
        accelerator.prepare_model(
            load_temporal(files, config, weights_file(files, settings)), evaluation_mode=True
        ),
        store,
        usable.video_ids,
        clips=clips,
        position_fps=config.temporal.position_fps,
        accelerator=accelerator,
    )
    baselines: dict[str, Tensor] = {}
    is_plain = not settings.clips and not settings.shuffle_frames and settings.protocol == "all"
    if files.baselines.exists() and is_plain:
        fitted = Baselines.from_tensors(read_weights(files.baselines))
        baselines = fitted.logits_of(store, usable.video_ids, config.temporal)
    check_logits(logits, usable.video_ids)
    return ScoredSplit(usable, logits, targets, f"features {store.fingerprint}", baselines)


def weights_file(files: RunFolder, settings: EvaluateSettings) -> Path:
    """Return the file of the weights to score.

    Raises:
        SettingsError: the model has no last epoch.
    """
    if settings.weights == "kept":
        return files.kept
    if not files.last.exists():
        raise SettingsError(
            f"--weights last: {files.root} has no {files.last.name}, which a training writes; "
            "leave it out"
        )
    return files.last


def logits_of_features(
    temporal: nn.Module,
    store: FeatureStore,
    video_ids: Sequence[str],
    *,
    clips: EvenClips | None = None,
    position_fps: float | None,
    accelerator: Accelerator,
) -> Tensor:
    """Return the logits [N, C] of stored videos.

    Args:
        temporal: temporal model, prepared by `accelerator`.
        store: features that fit the model, of all the videos.
        video_ids: ids of the videos.
        clips: clips whose logits are averaged; by default every frame at once.
        position_fps: positions per second, see `frame_positions`; None for frame indices.
        accelerator: see `temporal/distributed.py`.

    Raises:
        FeaturesError: a feature is not finite.
    """
    dataset = ClipDataset(
        FeatureReader(store),
        video_ids,
        torch.zeros(len(video_ids)),  # targets are not used
        clips or EvenClips(),
        position_fps=position_fps,
    )
    return predict_logits(temporal, dataset, accelerator=accelerator)


def score_video_split(
    files: RunFolder,
    config: NetworkConfig,
    source: str | Path,
    settings: EvaluateSettings,
    accelerator: Accelerator,
) -> ScoredSplit:
    """Compute the logits of a split's videos, which a manifest lists, by decoding them."""
    rows = rows_of_split(read_manifest(source), settings.split)
    read_targets(
        rows, config.class_names, config.temporal.task
    )  # raises before anything is decoded
    path = weights_file(files, settings)
    network = VideoTransformerNetwork.from_pretrained(files.root, weights=path.name)
    network = network.to(accelerator.device)
    classify = VideoClassifier(
        network=network,
        mode="end-to-end" if settings.mode == "end-to-end" else "chunked",
        chunk_frames=settings.chunk_frames,
        num_decoder_processes=num_cpus_per_process(),
        shuffle_seed=settings.shuffle_seed,
    )
    videos, faults = _videos_to_score(rows, config, settings)
    scored = score_videos(classify, videos, accelerator)
    faults |= dict(scored.faults)
    assert scored.rows is not None
    names = [videos[number].name for number in scored.rows.tolist()]
    check_logits(scored.logits, names)
    logits = dict(zip(names, scored.logits, strict=True))
    usable = usable_rows(
        {name: "partial" if name in faults else "ok" for name in logits},
        rows,
        settings.split,
        what="frames",
        remedy="leave out --drop-partial, or fix the files",
        drop_partial=settings.drop_partial,
    )
    return ScoredSplit(
        usable,
        torch.stack([logits[row.video_id] for row in usable.rows]),
        read_targets(usable.rows, config.class_names, config.temporal.task),
        f"videos, {classify.mode}",
        faults=tuple(f"{name}: {fault}" for name, fault in faults.items()),
    )


def _videos_to_score(
    rows: list[VideoRow], config: NetworkConfig, settings: EvaluateSettings
) -> tuple[list[VideoToClassify], dict[str, str]]:
    """Return the videos to decode, and video_id → fault of those that are not complete."""
    sampling = Sampling.from_spec(config.spec)
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

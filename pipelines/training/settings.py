"""Settings of `vtnpipe train-temporal`, and those that `vtnpipe finetune` shares."""

from dataclasses import dataclass
from typing import Literal

from ...temporal.config import ENCODERS, PositionEmbedding, TaskType
from ...temporal.distributed import Precision
from ...temporal.feature_reader import Preload
from ...temporal.optim import ClassWeights, Optimizer, Recipe, Schedule
from ...temporal.presets import PRESETS
from ...temporal.train import CheckpointPolicy
from ..settings import (
    above,
    at_least,
    between,
    check_settings,
    check_unset,
    clip_frames_setting,
    clip_seconds_setting,
    device_setting,
    drop_partial_setting,
    manifest_setting,
    one_of_or_factory,
    seed_setting,
    setting,
)

BY_PRESET = "By default the preset's."


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of both commands. None means the preset's value, or that of the initial model."""

    preset: str = setting(
        "auto",
        help=f"{', '.join(PRESETS)}; auto: the one with the backbone, else vit-b-vtn's shape for "
        "the backbone's features.",
        metavar="NAME",
    )
    task: TaskType = setting(
        "classification", help="multi-label: labels are a|b; regression: labels are numbers."
    )
    encoder: str | None = setting(
        None,
        help="By default longformer; full: exact attention; mean: ignores the order; or a user "
        "module.",
        check=one_of_or_factory(*ENCODERS),
        metavar=f"{'|'.join(ENCODERS)}|package.module:factory",
    )
    layers: int | None = setting(
        None, help=f"Number of encoder layers. {BY_PRESET}", check=at_least(1)
    )
    heads: int | None = setting(
        None, help=f"Attention heads of each layer. {BY_PRESET}", check=at_least(1)
    )
    attention_window: int | None = setting(
        None,
        help="Width of the local attention in frames, even, half to each side; by default 18.",
    )
    intermediate: int | None = setting(
        None, help=f"Dimensions inside each layer. {BY_PRESET}", check=at_least(1)
    )
    head: str | None = setting(
        None,
        help="By default mlp, the paper's; or a user module.",
        check=one_of_or_factory("mlp"),
        metavar="mlp|package.module:factory",
    )
    head_dim: int | None = setting(
        None, help=f"Dimensions inside the head. {BY_PRESET}", check=at_least(1)
    )
    position_embedding: PositionEmbedding | None = setting(
        None, help="By default learned; sinusoidal: fixed; none: no positions."
    )
    max_positions: int | None = setting(
        None,
        help="Rows of the learned position embedding, of which frames use all but two; larger "
        "positions wrap around: by default 288, which is 11.4 s at 25 positions per second.",
        check=at_least(3),
    )
    positions: Literal["seconds", "frames"] | None = setting(
        None,
        help="Position of a frame: its time (the default), or its frame index.",
    )
    position_fps: float | None = setting(
        None, help="Positions per second; by default 25.", check=between(1e-3, 1e6)
    )
    dropout: float | None = setting(
        None,
        help="Dropout in the encoder, attention included; by default 0.1.",
        check=between(0, 1),
    )
    head_dropout: float | None = setting(
        None, help="Dropout in the head; by default 0.5.", check=between(0, 1)
    )
    epochs: int = setting(Recipe.epochs, help="Passes over the training split.", check=at_least(1))
    batch_size: int | None = setting(
        None, help=f"Clips per step, over all processes. {BY_PRESET}", check=at_least(1)
    )
    optimizer: Optimizer = setting(Recipe.optimizer, help="sgd is the paper's.")
    lr: float = setting(Recipe.lr, help="Learning rate at the start.", check=between(0, 1e30))
    momentum: float = setting(Recipe.momentum, help="Momentum of SGD.", check=between(0, 1))
    weight_decay: float = setting(Recipe.weight_decay, help="Weight decay.", check=between(0, 1))
    schedule: Schedule | None = setting(
        None,
        help=f"steps: x0.1 after 13/25 of the epochs, x0.01 after 24/25; "
        f"cosine: down to 0. {BY_PRESET}",
    )
    warmup_epochs: float = setting(
        Recipe.warmup_epochs,
        help="Epochs in which the learning rate rises from a hundredth.",
        check=between(0, 1e6),
    )
    gradient_accumulation: int = setting(
        Recipe.gradient_accumulation,
        help="Parts that a batch is computed in: less memory, the same step.",
        check=at_least(1),
    )
    max_grad_norm: float | None = setting(
        Recipe.max_grad_norm,
        help="Clip the gradients to this norm, all together; by default not at all.",
        check=above(0),
    )
    label_smoothing: float = setting(
        Recipe.label_smoothing,
        help="Share of each target that is spread over all classes.",
        check=between(0, 1),
    )
    class_weights: ClassWeights = setting(
        Recipe.class_weights, help="balanced: every class counts alike."
    )
    precision: Precision = setting(
        Recipe.precision, help="Precision of the computation; weights stay float32."
    )
    patience: int | None = setting(
        Recipe.patience,
        help="Stop after so many epochs without improvement of validation's first metric.",
        check=at_least(1),
    )
    clip_frames: int = clip_frames_setting("Frames of a training clip.")
    clip_seconds: float = clip_seconds_setting()
    time_jitter: float = setting(
        0.0,
        help="Move each frame of a clip at random by up to half this share of the gap to the next; "
        "1: anywhere in its piece of the clip.",
        check=between(0, 1),
    )
    frame_drop: float = setting(
        0.0, help="Share of a clip's frames that is left out at random.", check=between(0, 1)
    )
    train_split: str = setting("train", help="Split of the manifest to train on.")
    val_split: str = setting(
        "val",
        help="Split whose first metric (top-1, mAP, RMSE) determines the best epoch.",
    )
    gradient_checkpointing: bool = setting(
        False, help="Recompute activations: less memory, more time, the same weights."
    )
    checkpoint_minutes: float = setting(
        CheckpointPolicy.minutes,
        help="Minutes between checkpoints inside an epoch; there is one after each epoch.",
        check=at_least(0),
    )
    keep_checkpoints: int = setting(
        CheckpointPolicy.num_kept, help="Number of newest checkpoints to keep.", check=at_least(1)
    )
    seed: int = seed_setting("Seed of weights, clips and their order.")
    device: str = device_setting()

    def __post_init__(self) -> None:
        check_settings(self)
        if self.positions == "frames":
            check_unset(self, ["position_fps"], "--positions frames has no rate")
        if self.optimizer != "sgd":
            check_unset(self, ["momentum"], f"--optimizer {self.optimizer} has none")

    @property
    def checkpoints(self) -> CheckpointPolicy:
        """Checkpoint policy."""
        return CheckpointPolicy(minutes=self.checkpoint_minutes, num_kept=self.keep_checkpoints)


@dataclass(frozen=True, kw_only=True)
class TrainTemporalSettings(TrainSettings):
    """Settings of `vtnpipe train-temporal`."""

    train_on: Literal["clips", "videos"] = setting(
        "clips", help="videos: every frame of each video, as in evaluation."
    )
    manifest: str | None = manifest_setting()
    drop_partial: bool = drop_partial_setting()
    preload: Preload = setting(
        "auto",
        help="Where to copy the features first. auto: to the GPU, else to RAM, if they take at "
        "most half of the free memory; none: read them from the shards.",
    )
    num_workers: int = setting(
        0, help="Processes that load batches ahead, if features are not copied.", check=at_least(0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_on == "videos":
            clips = ("clip_frames", "clip_seconds", "time_jitter")
            check_unset(self, clips, "--train-on videos has no clips")

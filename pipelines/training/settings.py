"""Settings of `vtnpipe train-temporal`, and those that `vtnpipe finetune` shares."""

from dataclasses import dataclass
from typing import Literal

from ...manifests.errors import SettingsError
from ...manifests.segments import BACKGROUND
from ...temporal.config import ENCODERS, FRAME_TASKS, PositionEmbedding, TaskType
from ...temporal.distributed import PrecisionChoice
from ...temporal.feature_reader import Preload
from ...temporal.optim import (
    FEATURES,
    MIN_VIDEOS_TO_CHOOSE,
    ClassWeights,
    Keep,
    Optimizer,
    Recipe,
    RecipeName,
    Schedule,
)
from ...temporal.presets import PRESETS
from ...temporal.train import MAX_SAVING_SHARE, CheckpointPolicy
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
CLIP_SETTINGS = ("clip_frames", "clip_seconds", "time_jitter")
BY_RECIPE = "By default the recipe's."


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of both commands.

    None means the value of the recipe or preset, or that of the initial model.
    """

    preset: str = setting(
        "auto",
        help=f"Shape of the model: {', '.join(PRESETS)}; auto: with --recipe features one for the "
        "size of the training split, else the one with the backbone, or vit-b-vtn's for its "
        "features.",
        metavar="NAME",
    )
    task: TaskType = setting(
        "classification",
        help="multi-label: labels are a|b; regression: labels are numbers; frames: a class of each "
        "frame, from --segments; frames-multi-label: any number of classes of each frame.",
    )
    segments: str | None = setting(
        None,
        help="Segments of the videos, for the tasks on frames: a CSV with video_id, start, end "
        "(seconds) and label.",
        metavar="FILE",
    )
    background: str = setting(
        BACKGROUND, help="Class of the frames that no segment covers, for --task frames."
    )
    smoothing_loss: float = setting(
        Recipe.smoothing_loss,
        help="For the tasks on frames: weight of the differences between neighboring frames.",
        check=between(0, 1e6),
    )
    encoder: str | None = setting(
        None,
        help="By default longformer; full: exact attention; uniform: equal attention; attentive: "
        "one learned query; mean: ignores the order; a transformer of Hugging Face; or a user "
        "module.",
        check=one_of_or_factory(*ENCODERS, prefix="hf:"),
        metavar=f"{'|'.join(ENCODERS)}|hf:NAME|package.module:factory",
    )
    hidden_dim: int | None = setting(
        None,
        help=f"Dimensions of the tokens, to which features are projected. {BY_PRESET}",
        check=at_least(1),
    )
    layers: int | None = setting(
        None, help=f"Number of encoder layers. {BY_PRESET}", check=at_least(1)
    )
    heads: int | None = setting(
        None, help=f"Attention heads of each layer. {BY_PRESET}", check=at_least(1)
    )
    attention_window: int | None = setting(
        None,
        help="Width of the local attention in frames, even, half to each side; by default 18, or "
        "64 for tasks on frames.",
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
        None,
        help="learned; sinusoidal: fixed, never wraps; convolution: of neighboring frames, the "
        f"default for tasks on frames; none: no positions. {BY_PRESET}",
    )
    max_positions: int | None = setting(
        None,
        help="Rows of the learned position embedding, of which frames use all but two; larger "
        "positions wrap around: by default 288, which is 11.4 s at 25 positions per second.",
        check=at_least(3),
    )
    positions: Literal["seconds", "frames"] | None = setting(
        None,
        help=f"Position of a frame: its time, or its frame index. {BY_RECIPE}",
    )
    position_fps: float | None = setting(
        None,
        help="Positions per second; by default 25, or fewer where learned positions would wrap "
        "around within the longest training video.",
        check=between(1e-3, 1e6),
    )
    dropout: float | None = setting(
        None,
        help="Dropout in the encoder, attention included; by default 0.1.",
        check=between(0, 1),
    )
    input_dropout: float | None = setting(
        None, help=f"Dropout of the features. {BY_PRESET}", check=between(0, 1)
    )
    head_dropout: float | None = setting(
        None, help=f"Dropout in the head. {BY_PRESET}", check=between(0, 1)
    )
    epochs: int | None = setting(
        None, help=f"Passes over the training split. {BY_RECIPE}", check=at_least(1)
    )
    batch_size: int | None = setting(
        None, help=f"Clips per step, over all processes. {BY_PRESET}", check=at_least(1)
    )
    optimizer: Optimizer | None = setting(None, help=BY_RECIPE)
    lr: float | None = setting(
        None, help=f"Learning rate after the warmup. {BY_RECIPE}", check=between(0, 1e30)
    )
    momentum: float = setting(
        Recipe.momentum, help="Nesterov momentum of SGD.", check=between(0, 1)
    )
    weight_decay: float | None = setting(
        None, help=f"Weight decay. {BY_RECIPE}", check=between(0, 1)
    )
    schedule: Schedule | None = setting(
        None,
        help=f"steps: x0.1 after 13/25 of the epochs, x0.01 after 24/25; "
        f"cosine: down to 0. {BY_RECIPE}",
    )
    warmup_epochs: float | None = setting(
        None,
        help=f"Epochs in which the learning rate rises from a hundredth. {BY_RECIPE}",
        check=between(0, 1e6),
    )
    gradient_accumulation: int = setting(
        Recipe.gradient_accumulation,
        help="Parts that a batch is computed in: less memory, the same step.",
        check=at_least(1),
    )
    max_grad_norm: float | None = setting(
        None,
        help=f"Clip the gradients to this norm, all together. {BY_RECIPE}",
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
    precision: PrecisionChoice = setting(
        "auto",
        help="Precision of the computation; weights stay float32. auto: bfloat16 on a GPU that has "
        "it, else float32.",
    )
    patience: int | None = setting(
        Recipe.patience,
        help="Stop after so many epochs without improvement of validation's first metric.",
        check=at_least(1),
    )
    keep: Keep | None = setting(
        None,
        help="Epoch that becomes the run's model: last, or best on the validation split; auto: the "
        f"last, unless that split has {MIN_VIDEOS_TO_CHOOSE:,} videos. {BY_RECIPE}",
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
        help="Split that is scored after each epoch, by its first metric: top-1, mAP, RMSE or "
        "frame accuracy.",
    )
    gradient_checkpointing: bool = setting(
        False, help="Recompute activations: less memory, more time, the same weights."
    )
    checkpoint_minutes: float = setting(
        CheckpointPolicy.minutes,
        help="Minutes between checkpoints inside an epoch; there is one after each epoch, too, "
        f"unless saving would take more than {MAX_SAVING_SHARE:.0%} of the time.",
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
        is_of_frames = self.task in FRAME_TASKS
        if is_of_frames and self.segments is None:
            raise SettingsError(
                f"--task {self.task}: needs --segments FILE, a CSV with video_id, start, end and "
                "label; `vtnpipe manifest build` makes one of other programs' files"
            )
        if is_of_frames:
            why = f"--task {self.task} takes consecutive frames"
            check_unset(self, ["clip_seconds", "time_jitter"], why)
        else:
            names = ["segments", "background", "smoothing_loss"]
            check_unset(self, names, f"it is for the tasks {' and '.join(FRAME_TASKS)}")
        is_paper = self.recipe_name == "paper"
        optimizer = self.optimizer or (Recipe.optimizer if is_paper else FEATURES["optimizer"])
        if optimizer != "sgd":
            check_unset(self, ["momentum"], f"--optimizer {optimizer} has none")

    @property
    def recipe_name(self) -> RecipeName:
        """Name of the recipe that gives the values of unset fields."""
        return "paper"

    @property
    def follows_authors(self) -> bool:
        """Whether clips and positions are the authors', too."""
        return False

    @property
    def checkpoints(self) -> CheckpointPolicy:
        """Checkpoint policy."""
        return CheckpointPolicy(minutes=self.checkpoint_minutes, num_kept=self.keep_checkpoints)


@dataclass(frozen=True, kw_only=True)
class TrainTemporalSettings(TrainSettings):
    """Settings of `vtnpipe train-temporal`."""

    recipe: RecipeName = setting(
        "features",
        help="features: for stored features of 50 to 5,000 videos; paper: the authors' recipe and "
        "model.",
    )
    shortcut: Literal["auto", "none", "mean", "motion"] = setting(
        "auto",
        help="Linear probe on each clip's mean feature (mean), or on mean, spread and step "
        "(motion), that adds to the logits; auto: with --recipe features and the encoders "
        "longformer and full, the one that cross-validation prefers, if any.",
    )
    train_on: Literal["auto", "clips", "videos"] = setting(
        "auto",
        help="clips: random clips; videos: every frame of each video, as in evaluation; auto: "
        "videos where a clip is less than half of one, with --recipe features and without options "
        "for clips.",
    )
    manifest: str | None = manifest_setting()
    drop_partial: bool = drop_partial_setting()
    preload: Preload = setting(
        "auto",
        help="Where to copy the features first. auto: to the GPU, else to RAM, if they take at "
        "most half of the free memory; none: read them from the shards.",
    )
    num_workers: int = setting(
        0, help="Threads that load batches ahead, if features are not copied.", check=at_least(0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recipe == "paper":
            check_unset(self, ["shortcut"], "--recipe paper has none")
        if self.task in FRAME_TASKS:
            why = f"--task {self.task} takes whole videos, or long windows of them"
            check_unset(self, ["shortcut", "train_on", "clip_frames"], why)
        if self.train_on == "videos":
            check_unset(self, CLIP_SETTINGS, "--train-on videos has no clips")

    @property
    def asks_for_clips(self) -> bool:
        """Whether a setting of clips is not the default one."""
        defaults = type(self)
        return any(getattr(self, name) != getattr(defaults, name) for name in CLIP_SETTINGS)

    @property
    def recipe_name(self) -> RecipeName:
        """Name of the recipe that gives the values of unset fields."""
        return self.recipe

    @property
    def follows_authors(self) -> bool:
        """Whether clips and positions are the authors', too."""
        return self.recipe == "paper"

"""The settings that fitting on stored features and fitting from video have in common."""

from dataclasses import dataclass
from typing import Literal

from ...temporal.choices import (
    ENCODERS,
    ClassWeights,
    Optimizer,
    PositionEmbedding,
    Precision,
    Schedule,
    Task,
)
from .. import common_settings
from ..settings import (
    above,
    at_least,
    between,
    check_settings,
    check_unset,
    one_of_or_factory,
    setting,
)

OF_THE_PRESET = "By default, the preset's."


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Where a default is None, the preset decides, or the model that a fit begins with."""

    preset: str = setting(
        "auto",
        help="vit-b-vtn, vit-b-vtn-1layer, deit-b-vtn, deit-ti-vtn, r50-vtn, r101-vtn; auto: the "
        "one with the backbone, else vit-b-vtn's shape on the backbone's features.",
        metavar="NAME",
    )
    task: Task = setting(
        "classification", help="multi-label: labels are a|b; regression: labels are numbers."
    )
    encoder: str | None = setting(
        None,
        help="By default longformer; full: exact attention; perceiver: transformers'; mean: sees "
        "no order; or your own.",
        check=one_of_or_factory(*ENCODERS),
        metavar=f"{'|'.join(ENCODERS)}|package.module:factory",
    )
    layers: int | None = setting(
        None, help=f"Layers of the encoder. {OF_THE_PRESET}", check=at_least(1)
    )
    heads: int | None = setting(
        None, help=f"Attention heads of a layer. {OF_THE_PRESET}", check=at_least(1)
    )
    window: int | None = setting(
        None,
        help="Width of the local attention, in frames: even, half to each side; by default 18.",
    )
    intermediate: int | None = setting(
        None, help=f"Dimensions inside each layer. {OF_THE_PRESET}", check=at_least(1)
    )
    head: str | None = setting(
        None,
        help="By default mlp, the paper's; or your own.",
        check=one_of_or_factory("mlp"),
        metavar="mlp|package.module:factory",
    )
    head_dim: int | None = setting(
        None, help=f"Dimensions inside the head. {OF_THE_PRESET}", check=at_least(1)
    )
    position_embedding: PositionEmbedding | None = setting(
        None, help="By default learned; sinusoidal: fixed; none: the encoder sees no positions."
    )
    max_positions: int | None = setting(
        None,
        help="Rows of the learned position embedding, two of which are no frame's; positions "
        "beyond begin again: by default 288, which is 11.4 s at 25 a second.",
        check=at_least(3),
    )
    positions: Literal["seconds", "frames"] | None = setting(
        None,
        help="What a frame's position is: its time (the default), or its index, whatever its time.",
    )
    position_fps: float | None = setting(
        None, help="Positions a second; by default 25.", check=between(1e-3, 1e6)
    )
    dropout: float | None = setting(
        None,
        help="Dropout in the encoder, attention included; by default 0.1.",
        check=between(0, 1),
    )
    head_dropout: float | None = setting(
        None, help="Dropout in the head; by default 0.5.", check=between(0, 1)
    )
    epochs: int = setting(25, help="Passes over the training split.", check=at_least(1))
    batch_size: int | None = setting(
        None, help=f"Clips a step, of all processes together. {OF_THE_PRESET}", check=at_least(1)
    )
    optimizer: Optimizer = setting("sgd", help="SGD is the paper's.")
    lr: float = setting(1e-3, help="Learning rate at the start.", check=between(0, 1e30))
    momentum: float = setting(0.9, help="SGD's momentum.", check=between(0, 1))
    weight_decay: float = setting(0.0, help="Weight decay.", check=between(0, 1))
    schedule: Schedule | None = setting(
        None,
        help=f"steps: x0.1 after 13/25 of the epochs, x0.01 after 24/25; "
        f"cosine: down to 0. {OF_THE_PRESET}",
    )
    warm_up_epochs: float = setting(
        0.0, help="Epochs in which the learning rate rises from a hundredth.", check=between(0, 1e6)
    )
    gradient_accumulation: int = setting(
        1, help="Parts that a batch is computed in: less memory, the same step.", check=at_least(1)
    )
    clip_gradients: float | None = setting(
        None,
        help="Scale the gradients down to this norm, all together; by default, never.",
        check=above(0),
    )
    label_smoothing: float = setting(
        0.0, help="Share of each target that is spread over all classes.", check=between(0, 1)
    )
    class_weights: ClassWeights = setting(
        "none", help="balanced: rare classes count as much as frequent ones."
    )
    precision: Precision = setting(
        "float32", help="Precision of the computation; weights stay float32."
    )
    patience: int | None = setting(
        None,
        help="Stop after so many epochs in which validation's first figure did not improve.",
        check=at_least(1),
    )
    clip_frames: int = common_settings.clip_frames("Frames of a training clip.")
    clip_seconds: float = common_settings.clip_seconds()
    time_jitter: float = setting(
        0.0,
        help="Moves each frame of a clip at random by up to half this share of the gap to the "
        "next; 1: anywhere in its piece of the clip.",
        check=between(0, 1),
    )
    frame_drop: float = setting(
        0.0, help="Share of a clip's frames that is left out at random.", check=between(0, 1)
    )
    train_split: str = setting("train", help="The manifest's split to learn from.")
    val_split: str = setting(
        "val",
        help="The split whose first figure (top-1, mAP, RMSE) decides which epoch is the best.",
    )
    gradient_checkpointing: bool = setting(
        False, help="Less memory for more time; the same weights."
    )
    checkpoint_minutes: float = setting(
        10.0,
        help="Minutes between checkpoints inside an epoch; there is one after each anyway.",
        check=at_least(0),
    )
    keep_checkpoints: int = setting(
        2, help="How many of the newest checkpoints are kept.", check=at_least(1)
    )
    seed: int = common_settings.seed("Of weights, clips and their order.")
    device: str = common_settings.device("Where to train.")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.positions == "frames":
            check_unset(self, ["position_fps"], "--positions frames has no rate")
        if self.optimizer != "sgd":
            check_unset(self, ["momentum"], f"--optimizer {self.optimizer} has none")

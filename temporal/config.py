"""Temporal model configuration, as stored in `config.json`, from which the modules are created."""

from dataclasses import dataclass
from typing import Literal, get_args

from ..manifests.errors import SettingsError
from ..manifests.user_module import is_factory

# Besides hf:NAME and package.module:factory.
ENCODERS = ("longformer", "full", "uniform", "attentive", "mean")
TaskType = Literal["classification", "multi-label", "regression", "frames", "frames-multi-label"]
FRAME_TASKS: tuple[TaskType, ...] = ("frames", "frames-multi-label")
PositionEmbedding = Literal["learned", "sinusoidal", "convolution", "none"]
Shortcut = Literal["none", "mean", "motion"]


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """Configuration of a temporal model; the defaults are those of the authors' ViT-B-VTN.

    Attributes:
        feature_dim: D, dimensions of the backbone's features.
        hidden_dim: W, dimensions of the tokens, to which features are projected; None for D and no
            projection.
        standardize: whether features are standardized by the training split's mean and standard
            deviation.
        input_dropout: dropout of the features before their projection.
        shortcut: statistics of a clip from which a linear probe, fitted in advance, adds to the
            logits, see `temporal/shortcut.py`.
        num_classes: C, number of logits; 1 for regression.
        task: meaning of the logits, see `temporal/tasks.py`.
        encoder: one of `ENCODERS`, `hf:NAME`, or `package.module:factory`, see
            `temporal/encoders.py`.
        num_layers: number of encoder layers.
        num_heads: number of attention heads; divides D.
        attention_window: number of tokens that a token attends to besides itself, half to each
            side; even.
        intermediate_dim: dimensions inside each layer's feed-forward network.
        position_embedding: learned rows, the fixed sinusoids of arXiv 1706.03762, or none; or a
            depthwise convolution of the tokens over time (arXiv 2102.10882), which tells a token
            what precedes and follows it, wherever it is in the video.
        max_positions: rows of the learned position embedding; the last two belong to [CLS] and to
            padding, and positions of frames are taken modulo the number of the others.
        position_fps: positions per second; None if positions are frame indices.
        dropout: dropout of the embeddings and of each layer's two outputs.
        attention_dropout: dropout of the attention weights.
        head: `mlp`, or `package.module:factory`.
        head_dim: dimensions inside the MLP head.
        head_dropout: dropout inside the MLP head.
        window_frames: for a task on frames, number of frames of the windows in which longer videos
            are processed; None for whole videos.
        background_class: for the task `frames`, number of the class of frames that no segment
            covers.
        target_mean: mean of the training labels, for regression.
        target_std: standard deviation of the training labels, for regression.

    Raises:
        SettingsError: a value is invalid, or does not fit another one.
    """

    feature_dim: int
    num_classes: int
    hidden_dim: int | None = None
    standardize: bool = False
    input_dropout: float = 0.0
    shortcut: Shortcut = "none"
    task: TaskType = "classification"
    encoder: str = "longformer"
    num_layers: int = 3
    num_heads: int = 12
    attention_window: int = 18
    intermediate_dim: int = 3072
    position_embedding: PositionEmbedding = "learned"
    max_positions: int = 288
    position_fps: float | None = 25.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    head: str = "mlp"
    head_dim: int = 768
    head_dropout: float = 0.5
    window_frames: int | None = None
    background_class: int | None = None
    target_mean: float = 0.0
    target_std: float = 1.0

    @property
    def is_per_frame(self) -> bool:
        """Whether the model gives logits for each frame."""
        return self.task in FRAME_TASKS

    @property
    def token_dim(self) -> int:
        """W, dimensions of the tokens."""
        return self.hidden_dim or self.feature_dim

    def __post_init__(self) -> None:
        for name, value, words in (
            ("encoder", self.encoder, ENCODERS),
            ("head", self.head, ("mlp",)),
        ):
            is_hf = name == "encoder" and value.startswith("hf:")
            if value not in words and not is_hf and not is_factory(value):
                raise SettingsError(
                    f"--{name} {value!r}: it must be {', '.join(words)}"
                    f"{', hf:NAME' if name == 'encoder' else ''} or package.module:factory"
                )
        for name, value, words in (
            ("task", self.task, get_args(TaskType)),
            ("position-embedding", self.position_embedding, get_args(PositionEmbedding)),
            ("shortcut", self.shortcut, get_args(Shortcut)),
        ):
            if value not in words:
                raise SettingsError(f"--{name} {value!r}: it must be one of {', '.join(words)}")
        for name, number in (("feature_dim", self.feature_dim), ("num_classes", self.num_classes)):
            if not isinstance(number, int) or number < 1:
                raise SettingsError(f"{name} {number!r}: it must be a whole number, at least 1")
        for name, number in (
            ("hidden-dim", self.token_dim),
            ("layers", self.num_layers),
            ("heads", self.num_heads),
            ("attention-window", self.attention_window),
            ("intermediate", self.intermediate_dim),
            ("head-dim", self.head_dim),
            ("max-positions", self.max_positions),
        ):
            if not isinstance(number, int) or number < 1:
                raise SettingsError(f"--{name} {number!r}: it must be a whole number, at least 1")
        for name, share in (
            ("input-dropout", self.input_dropout),
            ("dropout", self.dropout),
            ("attention-dropout", self.attention_dropout),
            ("head-dropout", self.head_dropout),
        ):
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise SettingsError(f"--{name} {share!r}: it must be between 0 and 1")
        if self.task == "regression" and (self.num_classes != 1 or not self.target_std > 0):
            raise SettingsError(
                f"--task regression: the model has {self.num_classes} outputs and a target_std of "
                f"{self.target_std:g}; regression needs one output, and labels that differ"
            )
        if self.encoder == "mean" or is_factory(self.encoder):
            return
        if self.token_dim % self.num_heads:
            raise SettingsError(
                f"--heads {self.num_heads}: the number of heads must divide the tokens' "
                f"{self.token_dim} dimensions; give a divisor"
            )
        if self.encoder == "longformer" and self.attention_window % 2:
            raise SettingsError(
                f"--attention-window {self.attention_window}: it must be even, half to each side"
            )
        if self.max_positions < 3:
            raise SettingsError(f"--max-positions {self.max_positions}: it must be at least 3")

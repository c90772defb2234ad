"""The shape of a temporal model: what `config.json` says of it, what its modules are made from."""

from dataclasses import dataclass
from typing import get_args

from ..manifests.errors import SettingsError
from ..manifests.user_module import is_factory
from .choices import ENCODERS, PositionEmbedding, Task


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """The shape of a temporal model; the defaults are those of the authors' ViT-B-VTN.

    Attributes:
        feature_dim: D, of the backbone's features and of the tokens.
        num_classes: C, of the logits; 1 for regression.
        task: what the logits are, see `temporal/tasks.py`.
        encoder: one of `ENCODERS`, or `package.module:factory`, see `temporal/encoders.py`.
        num_layers: of the encoder.
        num_heads: of its attention; divides D.
        attention_window: tokens that a token looks at besides itself, half to each side; even.
        intermediate_dim: inside each layer's feed-forward network.
        position_embedding: learned rows, the fixed sinusoids of arXiv 1706.03762, or none.
        max_positions: rows of the learned embedding; the last two are [CLS]'s and padding's, and
            positions count modulo the others.
        position_fps: positions a second; None where positions are frame indices.
        dropout: of embeddings and of each layer's two outputs.
        attention_dropout: of attention weights.
        head: `mlp`, or `package.module:factory`.
        head_dim: inside the MLP head.
        head_dropout: inside the MLP head.
        target_mean: of the training labels, for regression.
        target_std: of the training labels, for regression.
    """

    feature_dim: int
    num_classes: int
    task: Task = "classification"
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
    target_mean: float = 0.0
    target_std: float = 1.0

    def __post_init__(self) -> None:
        for name, value, words in (
            ("encoder", self.encoder, ENCODERS),
            ("head", self.head, ("mlp",)),
        ):
            if value not in words and not is_factory(value):
                raise SettingsError(
                    f"--{name} {value!r}: there are {', '.join(words)} and package.module:factory"
                )
        for name, value, words in (
            ("task", self.task, get_args(Task)),
            ("position-embedding", self.position_embedding, get_args(PositionEmbedding)),
        ):
            if value not in words:
                raise SettingsError(f"--{name} {value!r}: there are {', '.join(words)}")
        for name, number in (("feature_dim", self.feature_dim), ("num_classes", self.num_classes)):
            if not isinstance(number, int) or number < 1:
                raise SettingsError(f"{name} {number!r}: it must be a whole number, at least 1")
        for name, number in (
            ("layers", self.num_layers),
            ("heads", self.num_heads),
            ("window", self.attention_window),
            ("intermediate", self.intermediate_dim),
            ("head-dim", self.head_dim),
            ("max-positions", self.max_positions),
        ):
            if not isinstance(number, int) or number < 1:
                raise SettingsError(f"--{name} {number!r}: it must be a whole number, at least 1")
        for name, share in (
            ("dropout", self.dropout),
            ("attention-dropout", self.attention_dropout),
            ("head-dropout", self.head_dropout),
        ):
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise SettingsError(f"--{name} {share!r}: it must be between 0 and 1")
        if self.task == "regression" and (self.num_classes != 1 or not self.target_std > 0):
            raise SettingsError(
                f"--task regression: {self.num_classes} outputs, a target_std of "
                f"{self.target_std:g}; it needs one output, and labels that differ"
            )
        if self.encoder == "mean" or is_factory(self.encoder):
            return
        if self.feature_dim % self.num_heads:
            raise SettingsError(
                f"--heads {self.num_heads}: the features have {self.feature_dim} dimensions, "
                "which they must divide; give a divisor"
            )
        if self.encoder == "longformer" and self.attention_window % 2:
            raise SettingsError(
                f"--window {self.attention_window}: it must be even, half to each side"
            )
        if self.max_positions < 3:
            raise SettingsError(f"--max-positions {self.max_positions}: it must be at least 3")

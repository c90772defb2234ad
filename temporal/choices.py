"""The words that stage two's settings take; light, so that the command line names them without
torch.
"""

from typing import Literal

ENCODERS = ("longformer", "full", "perceiver", "mean")  # or package.module:factory
PositionEmbedding = Literal["learned", "sinusoidal", "none"]
Task = Literal["classification", "multi-label", "regression"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["steps", "cosine"]
ClassWeights = Literal["none", "balanced"]
Precision = Literal["float32", "bfloat16", "float16"]
Preload = Literal["auto", "none", "ram", "gpu"]

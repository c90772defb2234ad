"""The words that stage two's settings take; light, so that the command line names them without
torch.
"""

from typing import Literal

Encoder = Literal["longformer", "mean"]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["steps", "cosine"]

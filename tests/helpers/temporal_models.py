"""Small temporal models with random weights as large as those of a trained model."""

from typing import Any

import torch
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.model import TemporalClassifier

D = 24


def small_config(**changes: object) -> TemporalConfig:
    values: dict[str, Any] = {
        "feature_dim": D,
        "num_classes": 5,
        "num_heads": 4,
        "intermediate_dim": 40,
        "head_dim": 16,
    }
    return TemporalConfig(**(values | changes))


def small_model(**changes: object) -> TemporalClassifier:
    """A model in evaluation mode; with weights as initialized, hardly anything changes a logit."""
    torch.manual_seed(0)
    model = TemporalClassifier(small_config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def random_clip(length: int, dim: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [1, T, D] and positions [1, T]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, length, dim, generator=generator), torch.arange(length)[None]

"""User modules: valid and invalid encoders and heads."""

from typing import Any

import torch
from torch import Tensor, nn
from vtnpipe.temporal.config import TemporalConfig


class Recurrent(nn.Module):
    """A GRU over the frames; returns its state after the last one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        states, _ = self.gru(features)
        return states[torch.arange(len(states)), mask.sum(1) - 1]


def recurrent(config: TemporalConfig) -> nn.Module:
    return Recurrent(config.feature_dim)


def one_layer(config: TemporalConfig) -> nn.Module:
    return nn.Linear(config.feature_dim, config.num_classes)


def too_wide(config: TemporalConfig) -> nn.Module:
    class Wide(Recurrent):
        def forward(self, features: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
            return super().forward(features, positions, mask).repeat(1, 2)

    return Wide(config.feature_dim)


def no_module(config: TemporalConfig) -> Any:
    return config


def fails(config: TemporalConfig) -> nn.Module:
    raise ZeroDivisionError("no layers")

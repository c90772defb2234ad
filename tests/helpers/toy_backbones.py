"""User modules for tests: small backbones whose features identify the frame."""

import os
import signal
import time

import torch
from torch import Tensor, nn


class BlockMeans(nn.Module):
    """The brightness of the frame's 4 x 4 blocks, in [0, 1]: [N, 3, 64, 64] → [N, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {
            "input_size": (3, 64, 64),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
        }

    def forward(self, frames: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(frames.mean(1), 4).flatten(1) * self.scale


class Mixer(BlockMeans):
    """Random features, which any rounding error changes: [N, 3, 64, 64] → [N, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 8, 8), nn.GELU(), nn.Flatten(), nn.Linear(1024, 256), nn.GELU()
        )
        self.head = nn.Linear(256, 32)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.layers(frames)) * self.scale


def block_means() -> nn.Module:
    return BlockMeans()


class SlowMixer(Mixer):
    """A Mixer that takes TOY_MILLISECONDS per frame, for runs that a test interrupts."""

    def forward(self, frames: Tensor) -> Tensor:
        time.sleep(len(frames) * float(os.environ.get("TOY_MILLISECONDS", "0")) / 1000)
        return super().forward(frames)


class Deadly(BlockMeans):
    """BlockMeans that kill their process when they see a frame of number 3000 or more."""

    def forward(self, frames: Tensor) -> Tensor:
        features = super().forward(frames)
        numbers = ((features > 0.5) * 2 ** torch.arange(16)).sum(1)
        if numbers.max() >= 3000:
            os.kill(os.getpid(), signal.SIGKILL)
        return features


def deadly() -> nn.Module:
    return Deadly()


def mixer() -> nn.Module:
    return Mixer()


def slow_mixer() -> nn.Module:
    return SlowMixer()


def huge() -> nn.Module:
    """A backbone whose features exceed the range of float16."""
    module = BlockMeans()
    nn.init.constant_(module.scale, 1e6)
    return module


def not_a_number() -> nn.Module:
    """A backbone whose features are NaN."""
    module = BlockMeans()
    nn.init.constant_(module.scale, float("nan"))
    return module


def maps() -> nn.Module:
    """A backbone without one vector per frame."""
    return nn.Conv2d(3, 4, 1)


def no_module() -> str:
    return "no module"


def fails() -> nn.Module:
    raise RuntimeError("on purpose")

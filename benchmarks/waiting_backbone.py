"""Stand-in for a GPU: a backbone that only waits, `waiting_backbone:waiting` as a user module."""

import time

import torch
from torch import Tensor, nn

FRAMES_PER_SECOND = 2000.0
SIZE = 32  # pixels


class Waiting(nn.Module):
    """Mean color of each frame, [N, 3, h, w] → [N, 3], at a steady rate."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.pretrained_cfg = {
            "input_size": (3, SIZE, SIZE),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
        }

    def forward(self, images: Tensor) -> Tensor:
        """Compute, and wait until the frames' time is over."""
        end = time.perf_counter() + len(images) / FRAMES_PER_SECOND
        means: Tensor = images.mean((2, 3)) * self.scale
        time.sleep(max(0.0, end - time.perf_counter()))
        return means


def waiting() -> nn.Module:
    """Return the backbone."""
    return Waiting()

"""Linear shortcut: a probe on statistics of a clip's features, which adds to the model's logits.

A few hundred videos are enough for a regularized linear probe, and too few for a transformer to
find the same by gradient descent. So the probe is fitted first (`temporal/baselines.py`), and the
model learns what it misses: the training loss adds the logits that a probe fitted without the video
predicts for it. `blend` is the factor of the learned logits; the validation split chooses it.

    logits = blend * head([CLS]) + weight @ (statistics - center) + bias
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TemporalConfig

BLENDS = torch.linspace(0, 1, 21)  # factors of the learned logits to choose from


def clip_statistics(features: Tensor, mask: Tensor) -> Tensor:
    """Return mean, standard deviation and mean absolute step of each clip's features, [B, 3 D].

    A step is the difference of two neighboring frames.

    Args:
        features: [B, T, D].
        mask: [B, T] bool, True for frames, False for padding.

    >>> features = torch.tensor([[[0.0], [2.0], [1.0], [9.0]]])
    >>> mask = torch.tensor([[True, True, True, False]])
    >>> clip_statistics(features, mask).round(decimals=3).tolist()
    [[1.0, 0.8159999847412109, 1.5]]
    """
    frames = features.float().masked_fill(~mask[..., None], 0.0)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    mean = frames.sum(1) / count
    deviations = (frames - mean[:, None]).masked_fill(~mask[..., None], 0.0)
    is_step = mask[:, 1:] & mask[:, :-1]
    steps = (frames[:, 1:] - frames[:, :-1]).abs().masked_fill(~is_step[..., None], 0.0)
    num_steps = is_step.sum(1, keepdim=True).clamp(min=1)
    spread = (deviations.square().sum(1) / count).sqrt()
    return torch.cat([mean, spread, steps.sum(1) / num_steps], dim=1)


class Shortcut(nn.Module):
    """Fitted linear probe on a clip's statistics; its tensors are buffers, which do not train.

    Args:
        config: configuration of the temporal model.

    Attributes:
        is_held_out: whether it takes no part in training mode, since the loss adds logits that
            probes fitted without the clip's video predict.
    """

    weight: Tensor
    center: Tensor
    bias: Tensor
    blend: Tensor

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.is_held_out = False
        num_statistics = 1 if config.shortcut == "mean" else 3
        shape = (config.num_classes, num_statistics * config.feature_dim)
        self.register_buffer("weight", torch.zeros(shape))
        self.register_buffer("center", torch.zeros(shape[1]))
        self.register_buffer("bias", torch.zeros(config.num_classes))
        self.register_buffer("blend", torch.ones(()))

    def forward(self, logits: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Add the probe's logits to the learned ones.

        Args:
            logits: [B, C], the learned logits.
            features: [B, T, D], before standardization.
            mask: [B, T] bool, True for frames, False for padding.
        """
        with torch.autocast(features.device.type, enabled=False):
            statistics = clip_statistics(features, mask)[:, : self.weight.shape[1]]
            centered = statistics.to(self.weight.dtype) - self.center
            return self.blend * logits + F.linear(centered, self.weight, self.bias)

    def set_probe(self, weight: Tensor, center: Tensor, bias: Tensor) -> None:
        """Set weight [C, F], center [F] and bias [C] of the probe."""
        self.weight.copy_(weight)
        self.center.copy_(center)
        self.bias.copy_(bias)


def choose_blend(probe_logits: Tensor, learned_logits: Tensor, targets: Tensor) -> float:
    """Return the factor of the learned logits with the lowest cross entropy; 1 without a probe.

    Args:
        probe_logits: [N, C] logits of the probe alone.
        learned_logits: [N, C] logits of the model without the probe.
        targets: [N].

    >>> right, wrong = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    >>> choose_blend(right, wrong, torch.tensor([0])), choose_blend(wrong, right, torch.tensor([0]))
    (0.0, 1.0)
    """
    if not probe_logits.any():
        return 1.0
    losses = [
        F.cross_entropy(probe_logits + float(blend) * learned_logits, targets) for blend in BLENDS
    ]
    return float(BLENDS[int(torch.stack(losses).argmin())])

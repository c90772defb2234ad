"""Training recipe: optimizer, learning-rate schedule, batch size and loss options."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .config import TemporalConfig
from .distributed import Precision
from .tasks import LossOptions, balanced_class_weights

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["steps", "cosine"]
ClassWeights = Literal["none", "balanced"]

STEPS = {13 / 25: 0.1, 24 / 25: 0.01}  # share of the epochs → learning-rate factor
WARMUP_START = 0.01  # learning-rate factor at which warmup starts


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training recipe; the defaults are the paper's for ViT-B-VTN.

    Attributes:
        epochs: number of passes over the training split.
        batch_size: clips per step, over all processes together.
        gradient_accumulation: number of parts that a batch is computed in.
        optimizer: optimizer of all trainable parameters.
        lr: learning rate at the start, or after the warmup.
        momentum: momentum of SGD.
        weight_decay: weight decay.
        schedule: `steps` (x0.1 after 13/25 of the epochs, x0.01 after 24/25) or `cosine`.
        warmup_epochs: epochs in which the learning rate rises linearly from a hundredth.
        max_grad_norm: largest norm of all gradients together; None for no clipping.
        label_smoothing: share of each target that is spread over all classes.
        class_weights: `balanced` makes every class count alike.
        patience: epochs without improvement after which training stops; None for never.
        precision: precision of the computation; weights are always float32.
        seed: seed of weights, clips, batches and dropout.
    """

    epochs: int = 25
    batch_size: int = 16
    gradient_accumulation: int = 1
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "steps"
    warmup_epochs: float = 0.0
    max_grad_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    patience: int | None = None
    precision: Precision = "float32"
    seed: int = 0

    def lr_factor(self, epoch: float) -> float:
        """Return the learning-rate factor at a (fractional) epoch.

        >>> recipe = Recipe()
        >>> [recipe.lr_factor(epoch) for epoch in (0, 12.9, 13, 23.9, 24)]
        [1.0, 1.0, 0.1, 0.1, 0.01]
        >>> [round(Recipe(schedule="cosine", epochs=2).lr_factor(e), 3) for e in (0, 0.5, 1, 1.5)]
        [1.0, 0.854, 0.5, 0.146]
        >>> [round(Recipe(warmup_epochs=2).lr_factor(e), 3) for e in (0, 1, 2)]
        [0.01, 0.505, 1.0]
        """
        done = epoch / self.epochs
        if self.schedule == "cosine":
            factor = (1 + math.cos(math.pi * done)) / 2
        else:
            passed = [factor for share, factor in STEPS.items() if done >= share - 1e-9]
            factor = passed[-1] if passed else 1.0
        if epoch < self.warmup_epochs:
            factor *= WARMUP_START + (1 - WARMUP_START) * epoch / self.warmup_epochs
        return factor

    def make_optimizer(
        self, module: nn.Module, lr_scales: Mapping[str, float] | None = None
    ) -> torch.optim.Optimizer:
        """Create the optimizer of all trainable parameters.

        Args:
            module: the model.
            lr_scales: parameter name → learning-rate factor; 1 for others.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                scale = (lr_scales or {}).get(name, 1.0)
                groups.setdefault(scale, []).append(parameter)
        learning = [{"params": one, "lr": self.lr * scale} for scale, one in groups.items()]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(learning, weight_decay=self.weight_decay)
        return torch.optim.SGD(learning, momentum=self.momentum, weight_decay=self.weight_decay)

    def loss_options(self, targets: Tensor, config: TemporalConfig) -> LossOptions:
        """Return the loss options, given all training targets."""
        is_balanced = self.class_weights == "balanced"
        return LossOptions(
            label_smoothing=self.label_smoothing,
            class_weights=balanced_class_weights(targets, config) if is_balanced else None,
        )

"""How a model is fitted: optimizer, schedule, batches; and how the loss is changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .choices import ClassWeights, Optimizer, Precision, Schedule
from .config import TemporalConfig
from .tasks import LossOptions, balanced_class_weights

STEPS = {13 / 25: 0.1, 24 / 25: 0.01}  # share of the epochs → factor of the learning rate
WARM_UP_FROM = 0.01  # of the learning rate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is fitted; the defaults are the paper's for ViT-B-VTN.

    Attributes:
        batch_size: clips a step, over all processes together.
        gradient_accumulation: parts that a batch is computed in, one after the other.
        warm_up_epochs: in which the learning rate rises from a hundredth, linearly.
        clip_gradients: largest norm of all gradients together; None for any.
        patience: epochs without a better figure after which to stop; None for no such stop.
        precision: that the model is computed in; its weights are float32 in any case.
    """

    epochs: int = 25
    batch_size: int = 16
    gradient_accumulation: int = 1
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9  # of SGD
    weight_decay: float = 0.0
    schedule: Schedule = "steps"
    warm_up_epochs: float = 0.0
    clip_gradients: float | None = None
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    patience: int | None = None
    precision: Precision = "float32"
    seed: int = 0

    def lr_factor(self, epoch: float) -> float:
        """What the learning rate is multiplied by after so many epochs, parts of one included.

        >>> recipe = Recipe()
        >>> [recipe.lr_factor(epoch) for epoch in (0, 12.9, 13, 23.9, 24)]
        [1.0, 1.0, 0.1, 0.1, 0.01]
        >>> [round(Recipe(schedule="cosine", epochs=2).lr_factor(e), 3) for e in (0, 0.5, 1, 1.5)]
        [1.0, 0.854, 0.5, 0.146]
        >>> [round(Recipe(warm_up_epochs=2).lr_factor(e), 3) for e in (0, 1, 2)]
        [0.01, 0.505, 1.0]
        """
        done = epoch / self.epochs
        if self.schedule == "cosine":
            factor = (1 + math.cos(math.pi * done)) / 2
        else:
            passed = [factor for share, factor in STEPS.items() if done >= share - 1e-9]
            factor = passed[-1] if passed else 1.0
        if epoch < self.warm_up_epochs:
            factor *= WARM_UP_FROM + (1 - WARM_UP_FROM) * epoch / self.warm_up_epochs
        return factor

    def make_optimizer(
        self, module: nn.Module, lr_scales: Mapping[str, float] | None = None
    ) -> torch.optim.Optimizer:
        """The optimizer of all parameters that learn.

        Args:
            module: whose.
            lr_scales: what the learning rate of a parameter is multiplied by; 1 for others.
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
        """How the loss is changed, given all the training targets."""
        is_balanced = self.class_weights == "balanced"
        return LossOptions(
            label_smoothing=self.label_smoothing,
            class_weights=balanced_class_weights(targets, config) if is_balanced else None,
        )

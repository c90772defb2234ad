"""Training recipes: optimizer, learning-rate schedule, steps, loss options, kept epoch.

paper     the authors' for ViT-B-VTN, as their code configures it (bomri/SlowFast)
features  for stored features of 50 to 5,000 videos: AdamW, cosine, enough steps
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .config import TemporalConfig
from .distributed import Precision
from .tasks import LossOptions, balanced_class_weights

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["steps", "cosine"]
ClassWeights = Literal["none", "balanced"]
Keep = Literal["auto", "best", "last"]
RecipeName = Literal["features", "paper"]

STEPS = {13 / 25: 0.1, 24 / 25: 0.01}  # share of the epochs → learning-rate factor
NUM_STEPS = 400  # that `features` takes at least, within its bounds of epochs
EPOCHS_FOR_STEPS = (10, 60)
# Validation videos from which on the best epoch is kept instead of the last one: with 1,000, the
# standard error of a top-1 of 75% is 1.4 points, with 46 it is 6.4.
MIN_VIDEOS_TO_CHOOSE = 1000
WARMUP_START = 0.01  # learning-rate factor at which warmup starts


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training recipe; the defaults are those of `paper`.

    Attributes:
        epochs: number of passes over the training split; 0 for as many as take `NUM_STEPS` steps.
        batch_size: clips per step, over all processes together.
        gradient_accumulation: number of parts that a batch is computed in.
        optimizer: optimizer of all trainable parameters.
        lr: learning rate at the start, or after the warmup.
        momentum: Nesterov momentum of SGD.
        weight_decay: weight decay; of SGD for all but BatchNorm, as the authors'; of AdamW for
            weight matrices only.
        schedule: `steps` (x0.1 after 13/25 of the epochs, x0.01 after 24/25) or `cosine`.
        warmup_epochs: epochs in which the learning rate rises linearly from a hundredth; below 0,
            the share of all epochs, negated.
        max_grad_norm: largest norm of all gradients together; None for no clipping.
        label_smoothing: share of each target that is spread over all classes.
        class_weights: `balanced` makes every class count alike.
        patience: epochs without improvement after which training stops; None for never.
        keep: the epoch that becomes the run's model: `last`, or `best` on the validation split;
            `auto` keeps the last one unless that split has `MIN_VIDEOS_TO_CHOOSE` videos, or
            `patience` is given.
        drop_last: leave out a last batch with fewer clips, as the authors do, if there are others.
        precision: precision of the computation; weights are always float32.
        seed: seed of weights, clips, batches and dropout.
    """

    epochs: int = 25
    batch_size: int = 16
    gradient_accumulation: int = 1
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "steps"
    warmup_epochs: float = 0.0
    max_grad_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: ClassWeights = "none"
    patience: int | None = None
    keep: Keep = "last"
    drop_last: bool = True
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
        warmup = self.warmup_epochs
        if epoch < warmup:
            factor *= WARMUP_START + (1 - WARMUP_START) * epoch / warmup
        return factor

    def make_optimizer(
        self, module: nn.Module, lr_scales: Mapping[str, float] | None = None
    ) -> torch.optim.Optimizer:
        """Create the optimizer of all trainable parameters.

        Args:
            module: the model.
            lr_scales: parameter name → learning-rate factor; 1 for others.
        """
        no_decay = _without_decay(module, self.optimizer)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                scale = (lr_scales or {}).get(name, 1.0)
                decay = 0.0 if name in no_decay else self.weight_decay
                groups.setdefault((scale, decay), []).append(parameter)
        learning = [
            {"params": one, "lr": self.lr * scale, "weight_decay": decay}
            for (scale, decay), one in groups.items()
        ]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(learning)
        return torch.optim.SGD(learning, momentum=self.momentum, nesterov=self.momentum > 0)

    def num_steps(self, num_clips: int) -> int:
        """Return the number of steps of an epoch."""
        if self.drop_last and num_clips >= self.batch_size:
            return num_clips // self.batch_size
        return math.ceil(num_clips / self.batch_size)

    def for_splits(self, num_clips: int, num_validation_videos: int) -> "Recipe":
        """Return the recipe with the epochs, the warmup and the kept epoch for two splits."""
        epochs = self.epochs
        if not epochs:
            least, most = EPOCHS_FOR_STEPS
            epochs = min(most, max(least, math.ceil(NUM_STEPS / self.num_steps(num_clips))))
        keep = self.keep
        if keep == "auto":
            can_choose = num_validation_videos >= MIN_VIDEOS_TO_CHOOSE
            keep = "best" if can_choose or self.patience is not None else "last"
        warmup = self.warmup_epochs
        warmup = warmup if warmup >= 0 else -warmup * epochs
        return replace(self, epochs=epochs, warmup_epochs=warmup, keep=keep)

    def loss_options(self, targets: Tensor, config: TemporalConfig) -> LossOptions:
        """Return the loss options, given all training targets."""
        is_balanced = self.class_weights == "balanced"
        return LossOptions(
            label_smoothing=self.label_smoothing,
            class_weights=balanced_class_weights(targets, config) if is_balanced else None,
        )


RECIPES: dict[RecipeName, Recipe] = {
    "paper": Recipe(),
    "features": Recipe(
        epochs=0,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.05,
        schedule="cosine",
        warmup_epochs=-0.1,
        max_grad_norm=1.0,
        keep="auto",
        drop_last=False,
    ),
}


def _without_decay(module: nn.Module, optimizer: Optimizer) -> set[str]:
    """Return the names of the parameters without weight decay.

    For SGD, they are those of BatchNorm; for AdamW, vectors, [CLS] and the embeddings of positions
    and token types.
    """
    found = set()
    for prefix, part in module.named_modules():
        is_batch_norm = isinstance(part, nn.modules.batchnorm._NormBase)
        for name, parameter in part.named_parameters(prefix, recurse=False):
            if optimizer == "sgd":
                is_exempt = is_batch_norm
            else:
                is_exempt = parameter.ndim < 2 or isinstance(part, nn.Embedding)
                is_exempt = is_exempt or name.endswith("cls_token")
            if is_exempt:
                found.add(name)
    return found

"""Training recipes: optimizer, learning-rate schedule, steps, loss options, kept epoch.

paper     the authors' for ViT-B-VTN, as their code configures it (bomri/SlowFast)
features  for stored features of 50 to 5,000 videos: AdamW, cosine, enough steps
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
NUM_STEPS = 400  # that `features` aims at
EPOCHS_FOR_STEPS = (10, 60)  # least and most epochs for that
# Validation videos from which on the best epoch is kept instead of the last one: with 1,000, the
# standard error of a top-1 of 75% is 1.4 points, with 46 it is 6.4.
MIN_VIDEOS_TO_CHOOSE = 1000
WARMUP_SHARE = 0.1  # of the epochs of `features`
WARMUP_START = 0.01  # learning-rate factor at which warmup starts


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training recipe; the defaults are those of `paper`.

    Attributes:
        epochs: number of passes over the training split.
        batch_size: clips per step, over all processes together.
        gradient_accumulation: number of parts that a batch is computed in.
        optimizer: optimizer of all trainable parameters.
        lr: learning rate at the start, or after the warmup.
        momentum: Nesterov momentum of SGD.
        weight_decay: weight decay; of SGD for all but BatchNorm, as the authors'; of AdamW for
            weight matrices only.
        schedule: `steps` (x0.1 after 13/25 of the epochs, x0.01 after 24/25) or `cosine`.
        warmup_epochs: epochs in which the learning rate rises linearly from a hundredth.
        max_grad_norm: largest norm of all gradients together; None for no clipping.
        label_smoothing: share of each target that is spread over all classes.
        class_weights: `balanced` makes every class count alike.
        smoothing_loss: weight of the loss of neighboring frames' differences, see `LossOptions`.
        patience: epochs without improvement after which training stops; None for never.
        keep: the epoch that becomes the run's model: `last`, or `best` on the validation split.
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
    smoothing_loss: float = 0.15
    patience: int | None = None
    keep: Literal["best", "last"] = "last"
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
            return torch.optim.AdamW(learning, fused=True)
        return torch.optim.SGD(
            learning, momentum=self.momentum, nesterov=self.momentum > 0, fused=True
        )

    def num_steps(self, num_clips: int) -> int:
        """Return the number of steps of an epoch."""
        if self.drop_last and num_clips >= self.batch_size:
            return num_clips // self.batch_size
        return math.ceil(num_clips / self.batch_size)

    def loss_options(self, targets: Tensor, config: TemporalConfig) -> LossOptions:
        """Return the loss options, given all training targets."""
        is_balanced = self.class_weights == "balanced"
        return LossOptions(
            smoothing=self.smoothing_loss if config.is_per_frame else 0.0,
            label_smoothing=self.label_smoothing,
            class_weights=balanced_class_weights(targets, config) if is_balanced else None,
        )


# Values of the recipe `features`, besides those that follow from the sizes of the splits.
FEATURES: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 5e-4,
    "weight_decay": 0.05,
    "schedule": "cosine",
    "max_grad_norm": 1.0,
    "drop_last": False,
}
# The same for tasks on frames, whose clips are whole videos or long windows.
FEATURES_OF_FRAMES: dict[str, Any] = {**FEATURES, "lr": 2e-3, "batch_size": 4}


def named_recipe(
    name: RecipeName,
    given: Mapping[str, Any],
    *,
    num_clips: int,
    num_validation_videos: int,
    is_per_frame: bool = False,
) -> Recipe:
    """Return a recipe for two splits: the given values, and the named recipe's for all others.

    `features` takes as many epochs as make `NUM_STEPS` steps, within bounds, and a tenth of them as
    warmup. A `keep` of `auto` is best from `MIN_VIDEOS_TO_CHOOSE` validation videos on, or with
    patience; else last.

    Args:
        name: name of the recipe.
        given: values of fields of `Recipe`, by name.
        num_clips: number of training clips per epoch.
        num_validation_videos: number of validation videos.
        is_per_frame: whether the task is on frames.
    """
    values = {"keep": "auto" if given.get("patience") is not None else "last", **given}
    if name == "features":
        own = FEATURES_OF_FRAMES if is_per_frame else FEATURES
        values = {**own, "keep": "auto", **given}
        num_steps = Recipe(**{**values, "keep": "last"}).num_steps(num_clips)
        least, most = EPOCHS_FOR_STEPS
        epochs = min(most, max(least, math.ceil(NUM_STEPS / num_steps)))
        values = {"epochs": epochs, **values}
        values = {"warmup_epochs": WARMUP_SHARE * values["epochs"], **values}
    if values.get("keep") == "auto":
        can_choose = num_validation_videos >= MIN_VIDEOS_TO_CHOOSE
        is_best = can_choose or values.get("patience") is not None
        values["keep"] = "best" if is_best else "last"
    return Recipe(**values)


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

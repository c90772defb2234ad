"""Fitting a temporal model: epochs of training clips, each followed by an evaluation and a
checkpoint.

A run that was stopped goes on from its last checkpoint and ends with the same weights: the order of
clips, their frames and dropout's noise follow from (seed, epoch) alone.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..manifests.errors import SettingsError
from .batch import Batch, collate
from .checkpoint import RunFolder, load_checkpoint, save_checkpoint, save_weights, write_lines
from .choices import Optimizer, Schedule
from .dataset import ClipDataset
from .metrics import Metrics, task_metrics
from .model import TemporalClassifier
from .tasks import task_loss

STEPS = {13 / 25: 0.1, 24 / 25: 0.01}  # share of the epochs → factor of the learning rate


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is fitted; the defaults are the paper's for ViT-B-VTN."""

    epochs: int = 25
    batch_size: int = 16
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9  # of SGD
    weight_decay: float = 0.0
    schedule: Schedule = "steps"
    seed: int = 0

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch.

        >>> recipe = Recipe()
        >>> [round(recipe.lr_at(epoch), 9) for epoch in (0, 12, 13, 23, 24)]
        [0.001, 0.001, 0.0001, 0.0001, 1e-05]
        >>> round(Recipe(schedule="cosine", epochs=2).lr_at(1), 9)
        0.0005
        """
        done = epoch / self.epochs
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        passed = [factor for share, factor in STEPS.items() if done >= share - 1e-9]
        return self.lr * (passed[-1] if passed else 1.0)


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """A line of metrics.jsonl."""

    epoch: int  # from 1, of those that are finished
    lr: float
    train_loss: float
    figures: dict[str, float | None]  # of the validation split, see `temporal/metrics.py`
    videos_per_second: float
    is_best: bool

    def to_json(self) -> dict[str, Any]:
        """The line: figures beside the rest."""
        values = asdict(self)
        figures, is_best = values.pop("figures"), values.pop("is_best")
        return {**values, **figures, "is_best": is_best}


def fit(
    model: TemporalClassifier,
    train: ClipDataset,
    validation: ClipDataset,
    class_names: list[str],
    recipe: Recipe,
    run: RunFolder,
    *,
    device: str,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> None:
    """Fits a model in a run folder, from its last checkpoint if it has one.

    Args:
        model: left with the weights of the last epoch.
        train: clips to learn from.
        validation: whole videos; the epoch that is the best on them, by the first of the task's
            figures, becomes the run's model.
        class_names: [C].
        recipe: how.
        run: where; the folder exists.
        device: `cpu`, `cuda` or `cuda:N`.
        on_epoch: called after each epoch.

    Raises:
        SettingsError: the loss is not finite.
    """
    model.to(device)
    optimizer = _optimizer(model, recipe)
    lines: list[dict[str, Any]] = []
    if (state := load_checkpoint(run)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        lines = state["lines"]
    write_lines(lines, run.metrics)  # those of the checkpoint, whatever a dying run left there
    for epoch in range(len(lines), recipe.epochs):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr_at(epoch)
        train_loss = _train_epoch(model, train, optimizer, recipe, epoch, device)
        rate = len(train) / (time.perf_counter() - began)
        metrics = evaluate(model, validation, class_names, recipe.batch_size, device=device)
        _check_finite(metrics.loss, recipe, epoch)
        report = EpochReport(
            epoch=epoch + 1,
            lr=recipe.lr_at(epoch),
            train_loss=train_loss,
            figures={name: getattr(metrics, name) for name in metrics.figures},
            videos_per_second=round(rate, 1),
            is_best=_is_best(metrics, lines),
        )
        lines.append(report.to_json())
        write_lines(lines, run.metrics)
        if report.is_best:
            save_weights(model, run.best, prefix="temporal.")
        save_weights(model, run.last, prefix="temporal.")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(run, epoch + 1, {**state, "lines": lines})
        on_epoch(report)


def _is_best(metrics: Metrics, lines: list[dict[str, Any]]) -> bool:
    """Whether the first of the figures beats that of every earlier line."""
    decisive = metrics.figures[0]
    sign = -1 if metrics.is_better_lower else 1
    value = sign * getattr(metrics, decisive)
    return all(value > sign * line[decisive] for line in lines)


def evaluate(
    model: TemporalClassifier,
    dataset: ClipDataset,
    class_names: list[str],
    batch_size: int,
    *,
    device: str,
) -> Metrics:
    """The figures of a model over a data set whose rows all have labels."""
    pairs = [
        (logits, batch.targets) for batch, logits in predict(model, dataset, batch_size, device)
    ]
    logits, targets = (torch.cat(column) for column in zip(*pairs, strict=True))
    return task_metrics(logits, targets, class_names, model.config)


@torch.inference_mode()
def predict(
    model: TemporalClassifier, dataset: ClipDataset, batch_size: int, device: str
) -> Iterator[tuple[Batch, Tensor]]:
    """Yields each batch of a data set, in order, with its logits [B, C] on the CPU."""
    model.eval()
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate):
        yield batch, _logits(model, batch, device).cpu()


def _logits(model: TemporalClassifier, batch: Batch, device: str) -> Tensor:
    inputs = (batch.features, batch.positions, batch.mask)
    logits: Tensor = model(*(tensor.to(device) for tensor in inputs))
    return logits


def _train_epoch(
    model: TemporalClassifier,
    train: ClipDataset,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    epoch: int,
    device: str,
) -> float:
    """One epoch; returns the mean loss of its clips."""
    torch.manual_seed(recipe.seed * 1_000_003 + epoch)  # the order of clips, and dropout
    train.epoch = epoch
    model.train()
    total = 0.0
    loader = DataLoader(train, batch_size=recipe.batch_size, shuffle=True, collate_fn=collate)
    for batch in loader:
        logits = _logits(model, batch, device)
        loss = task_loss(logits, batch.targets.to(device), model.config)
        _check_finite(loss.item(), recipe, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch.targets)
    return total / len(train)


def _check_finite(loss: float, recipe: Recipe, epoch: int) -> None:
    if not math.isfinite(loss):
        raise SettingsError(
            f"--lr {recipe.lr:g}: the loss became {loss} in epoch "
            f"{epoch + 1}; give a lower rate, in a new run folder"
        )


def _optimizer(model: TemporalClassifier, recipe: Recipe) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), **options)
    return torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **options)

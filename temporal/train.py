"""Training: epochs over clips, each followed by a validation and a checkpoint.

A stopped run resumes from its last checkpoint, in the middle of an epoch if need be, and ends with
the same weights: batches follow from (seed, epoch), clips from (seed, epoch, video) and dropout
from (seed, epoch, step), so a checkpoint needs no generator state.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..manifests.atomic import write_lines
from ..manifests.errors import ManifestError, SettingsError, StoppedError
from .checkpoint import RunFolder, load_checkpoint, save_checkpoint
from .config import TemporalConfig
from .dataset import ClipDataset, load_batches, training_batches
from .distributed import Accelerator, all_of, max_of, sum_of
from .inference import Scored, never
from .metrics import Metrics, task_metrics
from .optim import Recipe
from .step import TrainStep

CONTINUE, SAVE, STOP = range(3)
PENDING_LOSSES = 16  # losses that stay on the device, since reading one waits for its step
MAX_SAVING_SHARE = 0.05  # of the time that may go into saving weights after epochs


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One line of metrics.jsonl.

    Attributes:
        epoch: number of the epoch, from 1.
        lr: learning rate of its last step.
        train_loss: mean loss of the clips that could be read; 0 if none could.
        num_scored: number of scored validation videos.
        metrics: validation metrics by name, the decisive one first.
        videos_per_second: training clips per second.
        waiting: share of the training time spent waiting for clips.
        lost: clips and videos that could not be read completely, and why.
        is_best: whether it is the best epoch so far.
        confusion: confusion matrix of a classification; not part of the line.
    """

    epoch: int
    lr: float
    train_loss: float
    num_scored: int
    metrics: dict[str, float | None]
    videos_per_second: float
    waiting: float
    lost: list[str]
    is_best: bool
    confusion: list[list[int]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the line, with the metrics beside the other values."""
        values = asdict(replace(self, confusion=None))
        del values["confusion"]
        metrics, is_best = values.pop("metrics"), values.pop("is_best")
        return {**values, **metrics, "is_best": is_best}


class Validation(NamedTuple):
    """Result of scoring the validation split.

    Attributes:
        metrics: its metrics.
        num_scored: number of scored videos.
        faults: videos that could not be read completely, and why.
    """

    metrics: Metrics
    num_scored: int
    faults: list[str]

    @classmethod
    def of(
        cls, scored: Scored, targets: Tensor, class_names: Sequence[str], config: TemporalConfig
    ) -> "Validation":
        """Return the metrics of logits of a split's videos, given all targets of the split."""
        targets = targets if scored.rows is None else targets[scored.rows]
        metrics = task_metrics(scored.logits, targets, class_names, config)
        faults = [f"{video_id}: {why}" for video_id, why in scored.faults]
        return cls(metrics, len(targets), faults)


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Training callbacks: `on_step(epoch, steps done, steps in all)`, `on_epoch(report)`, and
    `should_stop()`, asked after each step.
    """

    on_step: Callable[[int, int, int], None] = lambda epoch, done, total: None
    on_epoch: Callable[[EpochReport], None] = lambda report: None
    should_stop: Callable[[], bool] = never


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """Checkpoint policy: the time between checkpoints, and the number that are kept.

    Attributes:
        minutes: minutes between checkpoints inside an epoch; there is one after an epoch, too, if
            saving then takes at most `MAX_SAVING_SHARE` of the time.
        num_kept: number of the newest checkpoints that are kept.
    """

    minutes: float = 10.0
    num_kept: int = 2


@dataclass(kw_only=True)
class TrainState:
    """Position of a training, as stored in a checkpoint beside the state of torch's objects.

    `loss_sum`, `weight_sum` and `lost` cover this epoch's steps so far: those of this process, or
    in a checkpoint those of all processes.
    """

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the next epoch
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    seconds: float = 0.0
    waiting_seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl


def train(
    model: nn.Module,
    config: TemporalConfig,
    dataset: ClipDataset,
    recipe: Recipe,
    folder: RunFolder,
    accelerator: Accelerator,
    *,
    validate: Callable[[nn.Module, Callable[[], bool]], Validation],
    save: Callable[[Path], None],
    checkpoints: CheckpointPolicy = CheckpointPolicy(),  # frozen
    callbacks: Callbacks = Callbacks(),  # frozen
    num_workers: int = 0,
    lr_scales: Mapping[str, float] | None = None,
    offsets: Tensor | None = None,
) -> list[dict[str, Any]]:
    """Train a model from the folder's last checkpoint, or from the beginning.

    The last epoch becomes the run's model, or the one with the best validation metric, as the
    recipe says.

    Args:
        model: the model; has the weights of the last epoch afterwards.
        config: configuration of its temporal model.
        dataset: training clips.
        recipe: training recipe.
        folder: existing run folder, which the first process writes to.
        accelerator: see `temporal/distributed.py`.
        validate: scores the validation split, the same in every process; raises StoppedError if
            its second argument returns True.
        save: writes the model's weights to a path.
        checkpoints: when checkpoints are written.
        callbacks: training callbacks.
        num_workers: threads that load batches ahead.
        lr_scales: parameter name → learning-rate factor; 1 for others.
        offsets: [N, C] logits of each training clip's video that the loss adds to the model's.

    Returns:
        The lines of metrics.jsonl.

    Raises:
        SettingsError: the loss is not finite.
        StoppedError: `callbacks.should_stop` returned True; a checkpoint has been written.
    """
    num_steps = recipe.num_steps(len(dataset))
    step = TrainStep(
        model, config, dataset, recipe, accelerator, lr_scales=lr_scales or {}, offsets=offsets
    )
    run = _RunWriter(model, step, recipe, folder, accelerator, checkpoints)
    state = run.resume()

    while state.epoch < recipe.epochs and not _has_plateaued(state.lines, recipe.patience):
        batches = training_batches(
            dataset.lengths,
            recipe.batch_size,
            seed=recipe.seed,
            epoch=state.epoch,
            drop_last=recipe.drop_last,
        )[state.step :]
        # An empty share becomes a clip of weight 0, so that every process takes every step.
        shares = [
            share if len(share) else keys[:1] for keys in batches for share in step.shares(keys)
        ]
        # Alone, the wait for a clip that hangs can end; several processes stop between steps.
        is_alone = accelerator.num_processes == 1
        should_stop = callbacks.should_stop if is_alone else never
        samples = load_batches(dataset, shares, num_workers, accelerator.device, should_stop)
        seeds = step.seeds(recipe.seed, state.epoch, num_steps)
        losses: list[Tensor] = []
        step.network.train()
        then = time.perf_counter()
        for keys in batches:
            step.set_seed(seeds[state.step])
            step.set_lr(recipe.lr_factor(state.epoch + state.step / num_steps))
            try:
                result = step(keys, samples)
            except StoppedError:
                if not should_stop():  # the decoder pool's own, such as that it does not start
                    raise
                _add_losses(losses, state, recipe)
                run.save_checkpoint(state)
                raise _stopped(folder, state, num_steps) from None
            losses.append(result.loss)
            state.step += 1
            state.weight_sum += result.weight
            state.waiting_seconds += result.waiting_seconds
            state.lost += result.faults
            action = CONTINUE
            if callbacks.should_stop():
                action = STOP
            elif run.is_due_in_epoch():
                action = SAVE
            action = max_of(accelerator, action)
            if action != CONTINUE or len(losses) == PENDING_LOSSES or state.step == num_steps:
                _add_losses(losses, state, recipe)
            now = time.perf_counter()
            state.seconds, then = state.seconds + now - then, now
            if action != CONTINUE:
                run.save_checkpoint(state)
            if action == STOP:
                raise _stopped(folder, state, num_steps)
            callbacks.on_step(state.epoch, state.step, num_steps)

        try:
            # Unwrapped: DDP would make processes without a batch share their buffers, too.
            found = validate(accelerator.unwrap_model(step.network), callbacks.should_stop)
        except StoppedError:
            run.save_checkpoint(state)
            raise _stopped(folder, state, num_steps) from None
        except ManifestError:  # no process can read any video
            run.save_checkpoint(state)
            raise
        _check_finite(found.metrics["loss"], recipe, state.epoch)
        if accelerator.is_main_process:  # all processes have the same faults
            state.lost += found.faults
        report = _epoch_report(accelerator, recipe, state, found, len(dataset), num_steps)
        state = TrainState(epoch=state.epoch + 1, lines=[*state.lines, report.to_json()])
        is_over = state.epoch == recipe.epochs or _has_plateaued(state.lines, recipe.patience)
        run.end_epoch(state, save, is_best=report.is_best, is_over=is_over)
        callbacks.on_epoch(report)
    return state.lines


class _RunWriter:
    """Writer of a run folder, of which only the first process writes.

    Saving takes at most `MAX_SAVING_SHARE` of the time: of short epochs, not every one is saved.
    The best epoch always is, if it is to be kept.
    """

    def __init__(
        self,
        model: nn.Module,
        step: TrainStep,
        recipe: Recipe,
        folder: RunFolder,
        accelerator: Accelerator,
        policy: CheckpointPolicy,
    ) -> None:
        self._model = model
        self._step = step
        self._recipe = recipe
        self._folder = folder
        self._accelerator = accelerator
        self._policy = policy
        self._is_main = bool(accelerator.is_main_process)
        self._saved_at = time.monotonic()
        self._saving_seconds = 0.0

    def resume(self) -> TrainState:
        """Load the newest checkpoint, if there is one, and return its position."""
        checkpoint = load_checkpoint(self._folder)
        state = TrainState()
        if checkpoint is not None:
            self._model.load_state_dict(checkpoint["model"])
            self._step.load_optimizer(checkpoint["optimizer"])
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(checkpoint["scaler"])
            state = TrainState(**checkpoint["progress"])
            if not self._is_main:  # the sums of all processes count once
                state.loss_sum, state.weight_sum, state.lost = 0.0, 0.0, []
        if self._is_main:
            # A killed run may have written lines after its last checkpoint.
            write_lines(state.lines, self._folder.metrics)
        return state

    def is_due_in_epoch(self) -> bool:
        """Return whether a checkpoint is due inside an epoch, in the first process."""
        return self._is_main and time.monotonic() - self._saved_at >= 60 * self._policy.minutes

    def save_checkpoint(self, state: TrainState) -> None:
        """Write a checkpoint, with the sums of all processes."""
        accelerator = self._accelerator
        total = replace(
            state,
            loss_sum=sum_of(accelerator, state.loss_sum),
            weight_sum=sum_of(accelerator, state.weight_sum),
            lost=_all_lost(accelerator, state),
        )
        if self._is_main:
            scaler = accelerator.scaler
            checkpoint = {
                "model": self._model.state_dict(),
                "optimizer": self._step.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "progress": asdict(total),
            }
            place, num_kept = (state.epoch, state.step), self._policy.num_kept
            save_checkpoint(self._folder, place, checkpoint, kept=num_kept)
        self._saved_at = time.monotonic()

    def end_epoch(
        self, state: TrainState, save: Callable[[Path], None], *, is_best: bool, is_over: bool
    ) -> None:
        """Write the metrics and, if it is time to, the weights and a checkpoint."""
        begun = time.monotonic()
        is_kept = is_best or self._recipe.keep != "best"
        is_due = is_over or self.is_due_in_epoch() or (is_best and self._recipe.keep == "best")
        is_due |= MAX_SAVING_SHARE * (begun - self._saved_at) >= self._saving_seconds
        if self._is_main:
            write_lines(state.lines, self._folder.metrics)
        if max_of(self._accelerator, self._is_main and is_due):
            if self._is_main:
                if is_kept:
                    save(self._folder.kept)
                save(self._folder.last)
            self.save_checkpoint(state)
            self._saving_seconds = self._saved_at - begun


def _add_losses(losses: list[Tensor], state: TrainState, recipe: Recipe) -> None:
    """Add pending losses of steps to the epoch's sum, and clear them."""
    for loss in torch.stack(losses).tolist() if losses else ():
        _check_finite(loss, recipe, state.epoch)
        state.loss_sum += loss
    losses.clear()


def _epoch_report(
    accelerator: Accelerator,
    recipe: Recipe,
    state: TrainState,
    found: Validation,
    num_clips: int,
    num_steps: int,
) -> EpochReport:
    metrics = found.metrics
    last_step = state.epoch + (num_steps - 1) / num_steps
    weight_sum = sum_of(accelerator, state.weight_sum)
    return EpochReport(
        epoch=state.epoch + 1,
        lr=recipe.lr * recipe.lr_factor(last_step),
        train_loss=sum_of(accelerator, state.loss_sum) / (weight_sum or 1.0),
        num_scored=found.num_scored,
        metrics={name: metrics[name] for name in metrics.names},
        videos_per_second=round(min(num_clips, num_steps * recipe.batch_size) / state.seconds, 1),
        waiting=round(state.waiting_seconds / state.seconds, 3),
        lost=_all_lost(accelerator, state),
        is_best=is_best(metrics, found.num_scored, state.lines),
        confusion=getattr(metrics, "confusion", None),
    )


def _all_lost(accelerator: Accelerator, state: TrainState) -> list[str]:
    """Return the clips and videos lost in all processes."""
    return [one for part in all_of(accelerator, state.lost) for one in part]


def is_best(metrics: Metrics, num_scored: int, lines: list[dict[str, Any]]) -> bool:
    """Return whether the decisive metric beats that of every earlier epoch.

    Only epochs in which as many videos could be scored are compared; an epoch in which fewer could
    be scored than before is never the best.
    """
    if any(line["num_scored"] > num_scored for line in lines):
        return False
    decisive = metrics.names[0]
    sign = -1 if metrics.is_better_lower else 1
    value = sign * (metrics[decisive] or 0.0)
    rivals = [line for line in lines if line["num_scored"] == num_scored]
    return all(value > sign * (line[decisive] or 0.0) for line in rivals)


def _has_plateaued(lines: list[dict[str, Any]], patience: int | None) -> bool:
    """Return whether the last `patience` epochs brought no improvement."""
    if patience is None or not lines:
        return False
    best = max(line["epoch"] for line in lines if line["is_best"])
    return bool(lines[-1]["epoch"] - best >= patience)


def _check_finite(loss: float | None, recipe: Recipe, epoch: int) -> None:
    """Refuse to continue with a loss of NaN or infinity.

    Raises:
        SettingsError: the loss is not finite.
    """
    loss = math.nan if loss is None else loss
    if not math.isfinite(loss):
        raise SettingsError(
            f"--lr {recipe.lr:g}: the loss became {loss} in epoch {epoch + 1}; give a lower "
            "learning rate, or --max-grad-norm, in a new run folder"
        )


def _stopped(folder: RunFolder, state: TrainState, num_steps: int) -> StoppedError:
    return StoppedError(
        f"{folder.root}: stopped in epoch {state.epoch + 1} after {state.step} of {num_steps} "
        "steps, and saved a checkpoint; the same command resumes"
    )

"""Fitting a model: epochs of training clips, each followed by an evaluation and a checkpoint.

A run that was stopped goes on from its last checkpoint, in the middle of an epoch if need be, and
ends with the same weights: batches follow from (seed, epoch), clips from (seed, epoch, video) and
dropout's noise from (seed, epoch, step), so a checkpoint needs no state of a generator.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ..manifests.atomic import write_lines
from ..manifests.errors import ManifestError, SettingsError, StoppedError
from .batch import Batch
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TemporalConfig
from .dataset import ClipDataset, Key
from .distributed import Accelerator, all_of, max_of, sum_of
from .inference import Scored, load, run
from .metrics import Metrics, task_metrics
from .optim import Recipe
from .order import share_of, training_batches
from .progress import EpochReport, Keeping, Progress, Watch
from .run_folder import RunFolder
from .tasks import clip_weights, task_losses

GO_ON, SAVE, STOP = range(3)
LOSSES_WAITING = 16  # steps whose losses stay on the device: reading each would wait for it


@dataclass(kw_only=True)
class Fit:
    """A model and what it is fitted with; `run` does it.

    Attributes:
        model: left with the weights of the last epoch.
        config: of the task.
        train: clips to learn from.
        validate: scores the validation split, the same in every process, by the model as
            accelerate has prepared it; obeys `watch.should_stop` with a StoppedError. The epoch
            that is the best by the first of the task's figures becomes the run's model.
        validation_targets: of that split.
        save: writes the model's weights to a path.
        class_names: [C].
        recipe: how.
        folder: where; it exists. Only the first process writes.
        accelerator: see `temporal/distributed.py`.
        keeping: checkpoints and reading.
        watch: who looks on.
        lr_scales: what the learning rate of a parameter is multiplied by; 1 for those not named.
    """

    model: nn.Module
    config: TemporalConfig
    train: ClipDataset
    validate: Callable[[nn.Module, Callable[[], bool]], Scored]
    validation_targets: Tensor
    save: Callable[[Path], None]
    class_names: list[str]
    recipe: Recipe
    folder: RunFolder
    accelerator: Accelerator
    keeping: Keeping = Keeping()
    watch: Watch = Watch()
    lr_scales: Mapping[str, float] = field(default_factory=dict)

    def run(self) -> list[dict[str, Any]]:
        """Fits from the folder's last checkpoint, or from the beginning.

        Returns:
            The lines of metrics.jsonl.

        Raises:
            SettingsError: the loss is not finite.
            StoppedError: `watch.should_stop` said so; a checkpoint has been written.
        """
        self._prepare()
        progress = self._resume()
        while progress.epoch < self.recipe.epochs and not self._is_over(progress.lines):
            self._train_epoch(progress)
            progress = self._finish_epoch(progress, *self._evaluate(progress))
        return progress.lines

    def _prepare(self) -> None:
        self._network, self._optimizer = self.accelerator.prepare(
            self.model, self.recipe.make_optimizer(self.model, self.lr_scales)
        )
        # Not prepared: accelerate would step it once for each process.
        self._num_steps = math.ceil(len(self.train) / self.recipe.batch_size)
        self._scheduler = LambdaLR(
            self._optimizer.optimizer, lambda step: self.recipe.lr_factor(step / self._num_steps)
        )
        loss = self.recipe.loss_options(self.train.targets, self.config)
        self._clip_weights = clip_weights(self.train.targets, self.config, loss)
        if loss.class_weights is not None:
            loss = replace(loss, class_weights=loss.class_weights.to(self.accelerator.device))
        self._loss = loss
        self._last_checkpoint = time.monotonic()

    def _resume(self) -> Progress:
        """Takes over the newest checkpoint, if there is one."""
        state = load_checkpoint(self.folder)
        progress = Progress()
        if state is not None:
            self.model.load_state_dict(state["model"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._scheduler.load_state_dict(state["scheduler"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            progress = Progress(**state["progress"])
            if not self.accelerator.is_main_process:
                # They are those of all.
                progress.loss_sum, progress.weight_sum, progress.lost = 0.0, 0.0, []
        if self.accelerator.is_main_process:
            # Those of the checkpoint, whatever a dying run left there.
            write_lines(progress.lines, self.folder.metrics)
        return progress

    def _save(self, progress: Progress) -> None:
        """Writes a checkpoint."""
        of_all: dict[str, Any] = {
            "loss_sum": sum_of(self.accelerator, progress.loss_sum),
            "weight_sum": sum_of(self.accelerator, progress.weight_sum),
            "lost": self._all_lost(progress),
        }
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "model": self.model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._scheduler.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "progress": asdict(replace(progress, **of_all)),
            }
            place = (progress.epoch, progress.step)
            save_checkpoint(self.folder, place, state, kept=self.keeping.num_checkpoints)
        self._last_checkpoint = time.monotonic()

    def _stop(self, progress: Progress) -> NoReturn:
        raise StoppedError(
            f"{self.folder.root}: stopped in epoch {progress.epoch + 1} after {progress.step} of "
            f"{self._num_steps} steps, which a checkpoint holds; the same command resumes"
        )

    def _wish(self) -> int:
        """What is to be done after a step, as one of the processes wants it."""
        wish = GO_ON
        if self.watch.should_stop():
            wish = STOP
        elif self.accelerator.is_main_process:
            seconds = time.monotonic() - self._last_checkpoint
            wish = SAVE if seconds >= 60 * self.keeping.checkpoint_minutes else GO_ON
        return max_of(self.accelerator, wish)

    def _is_over(self, lines: list[dict[str, Any]]) -> bool:
        """Whether the figures have not become better for as long as the recipe has patience."""
        if self.recipe.patience is None or not lines:
            return False
        best = max(line["epoch"] for line in lines if line["is_best"])
        return bool(lines[-1]["epoch"] - best >= self.recipe.patience)

    def _train_epoch(self, progress: Progress) -> None:
        """Does the steps of an epoch that are not done yet."""
        batches = training_batches(
            self.train.lengths, self.recipe.batch_size, seed=self.recipe.seed, epoch=progress.epoch
        )[progress.step :]
        # An empty share becomes a clip that counts nothing: every process takes every step.
        shares = [share or keys[:1] for keys in batches for share in self._shares(keys)]
        samples = iter(load(self.train, shares, self.keeping.num_loaders, self.accelerator))
        losses: list[Tensor] = []
        self._network.train()
        then = time.perf_counter()
        for keys in batches:
            self._seed(progress)
            losses.append(self._step(keys, samples, progress))
            progress.step += 1
            wish = self._wish()
            if wish != GO_ON or len(losses) == LOSSES_WAITING or progress.step == self._num_steps:
                self._add_up(losses, progress)
            now = time.perf_counter()
            progress.seconds, then = progress.seconds + now - then, now
            if wish != GO_ON:
                self._save(progress)
            if wish == STOP:
                self._stop(progress)
            self.watch.on_step(progress.epoch, progress.step, self._num_steps)

    def _shares(self, keys: list[Key]) -> list[list[Key]]:
        """This process's clips of each part of a batch."""
        num_parts, num_processes = self.recipe.gradient_accumulation, self.accelerator.num_processes
        first, count = self.accelerator.process_index, num_parts * num_processes
        return [share_of(keys, index, count) for index in range(first, count, num_processes)]

    def _step(self, keys: list[Key], samples: Iterator[Batch], progress: Progress) -> Tensor:
        """One step of the optimizer; returns the sum of the losses of this process's clips.

        The gradient is that of the batch's weighted mean loss, whatever the number of processes
        and parts; a clip that could not be read has a loss of 0.
        """
        scale = self.accelerator.num_processes / self._weight(keys)  # DDP takes the mean
        summed = torch.zeros((), device=self.accelerator.device)
        shares = self._shares(keys)
        for number, share in enumerate(shares, 1):
            begun = time.perf_counter()
            batch = next(samples)
            progress.waiting_seconds += time.perf_counter() - begun
            if share:
                progress.lost += batch.faults
                progress.weight_sum += float(self._clip_weights[batch.numbers[batch.is_read]].sum())
            is_last = number == len(shares)
            with nullcontext() if is_last else self.accelerator.no_sync(self._network):
                logits = run(self._network, batch, self.accelerator)
                targets = batch.targets.to(logits.device)
                losses = task_losses(logits, targets, self.config, self._loss)
                loss = (losses * batch.is_read.to(losses)).sum() * bool(share)
                self.accelerator.backward(loss * scale)
            summed += loss.detach()
        if self.recipe.clip_gradients is not None:
            self.accelerator.clip_grad_norm_(self._network.parameters(), self.recipe.clip_gradients)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        return summed

    def _weight(self, keys: list[Key]) -> float:
        """What the clips of a batch count together."""
        return float(self._clip_weights[[number for number, _ in keys]].sum())

    def _seed(self, progress: Progress) -> None:
        """Seeds dropout's noise."""
        place = (self.recipe.seed, progress.epoch, progress.step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))

    def _add_up(self, losses: list[Tensor], progress: Progress) -> None:
        """Empties the list of losses into the sum.

        Raises:
            SettingsError: one of them is not finite.
        """
        for loss in torch.stack(losses).tolist():
            self._check_finite(loss, progress.epoch)
            progress.loss_sum += loss
        losses.clear()

    def _check_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise SettingsError(
                f"--lr {self.recipe.lr:g}: the loss became {loss} in epoch {epoch + 1}; give a "
                "lower rate, or --clip-gradients, in a new run folder"
            )

    def _evaluate(self, progress: Progress) -> tuple[Metrics, int]:
        """The figures, and of how many videos."""
        try:
            # Unwrapped: DDP would have processes that have no batch share their buffers, too.
            network = self.accelerator.unwrap_model(self._network)
            scored = self.validate(network, self.watch.should_stop)
        except StoppedError:
            self._save(progress)
            self._stop(progress)
        except ManifestError:  # no video can be reached, by any process
            self._save(progress)
            raise
        if self.accelerator.is_main_process:  # all have the same
            progress.lost += [f"{video_id}: {why}" for video_id, why in scored.faults]
        targets = self.validation_targets
        if scored.rows is not None:
            targets = targets[scored.rows]
        metrics = task_metrics(scored.logits, targets, self.class_names, self.config)
        return metrics, len(targets)

    def _all_lost(self, progress: Progress) -> list[str]:
        """Of all processes."""
        return [one for part in all_of(self.accelerator, progress.lost) for one in part]

    def _finish_epoch(self, progress: Progress, metrics: Metrics, num_scored: int) -> Progress:
        """Writes what the epoch has led to; returns where the next one begins."""
        self._check_finite(metrics.loss, progress.epoch)
        last_step = progress.epoch + (self._num_steps - 1) / self._num_steps
        weight_sum = sum_of(self.accelerator, progress.weight_sum)
        report = EpochReport(
            epoch=progress.epoch + 1,
            lr=self.recipe.lr * self.recipe.lr_factor(last_step),
            train_loss=sum_of(self.accelerator, progress.loss_sum) / (weight_sum or 1.0),
            num_scored=num_scored,
            figures={name: getattr(metrics, name) for name in metrics.figures},
            videos_per_second=round(len(self.train) / progress.seconds, 1),
            waiting=round(progress.waiting_seconds / progress.seconds, 3),
            lost=self._all_lost(progress),
            is_best=_is_best(metrics, num_scored, progress.lines),
            confusion=getattr(metrics, "confusion", None),
        )
        progress.lines.append(report.to_json())
        if self.accelerator.is_main_process:
            write_lines(progress.lines, self.folder.metrics)
            if report.is_best:
                self.save(self.folder.best)
            self.save(self.folder.last)
        progress = Progress(epoch=progress.epoch + 1, lines=progress.lines)
        self._save(progress)
        self.watch.on_epoch(report)
        return progress


def _is_best(metrics: Metrics, num_scored: int, lines: list[dict[str, Any]]) -> bool:
    """Whether the first of the figures beats that of every earlier line, of those in which as many
    videos could be scored; where fewer could than before, it says too little.
    """
    if any(line["num_scored"] > num_scored for line in lines):
        return False
    decisive = metrics.figures[0]
    sign = -1 if metrics.is_better_lower else 1
    value = sign * getattr(metrics, decisive)
    rivals = [line for line in lines if line["num_scored"] == num_scored]
    return all(value > sign * line[decisive] for line in rivals)

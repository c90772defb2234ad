"""One training step: forward and backward pass, clipping of gradients, optimizer.

A batch is computed in parts (gradient accumulation) and by several processes; the gradient is that
of the batch's weighted mean loss, whatever their number. On CUDA, the whole step of one process and
one part is one graph, see `temporal/cuda_graphs.py`, unless `graph_obstacle` names a reason.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ENCODERS, TemporalConfig
from .cuda_graphs import CudaGraphs, graph_length
from .dataset import Batch, ClipDataset, Keys, share_of
from .distributed import Accelerator
from .encoders import ClsEncoder
from .frame_labels import FrameLabels
from .model import TemporalClassifier
from .optim import Recipe
from .tasks import clip_weights, task_losses

NUM_EAGER_STEPS = 3  # before a graph is captured, as PyTorch's documentation recommends


class StepResult(NamedTuple):
    """Result of a step in this process.

    Attributes:
        loss: sum of the clips' weighted losses, on the device.
        weight: sum of the weights of the clips that were read.
        waiting_seconds: time spent waiting for clips.
        faults: videos that could not be read completely, and why.
    """

    loss: Tensor
    weight: float
    waiting_seconds: float
    faults: list[str]


class TrainStep:
    """Training step of a model, as prepared for this process.

    Args:
        model: the model.
        config: configuration of its temporal model.
        dataset: training clips.
        recipe: training recipe.
        accelerator: see `temporal/distributed.py`.
        lr_scales: parameter name → learning-rate factor; 1 for others.
        offsets: [N, C] logits of each training clip's video that the loss adds to the model's.

    Attributes:
        network: the model as accelerate wraps it.
        optimizer: the optimizer.
        graphs: CUDA graphs of the step; None if it runs eagerly.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TemporalConfig,
        dataset: ClipDataset,
        recipe: Recipe,
        accelerator: Accelerator,
        *,
        lr_scales: Mapping[str, float],
        offsets: Tensor | None,
    ) -> None:
        self.network = accelerator.prepare(model)
        self.optimizer = recipe.make_optimizer(model, lr_scales)
        self._base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self._parameters = [one for one in model.parameters() if one.requires_grad]
        self._config = config
        self._recipe = recipe
        self._accelerator = accelerator
        targets = dataset.targets
        if isinstance(targets, FrameLabels):
            is_balanced = recipe.class_weights == "balanced"
            values = targets.values[targets.is_labeled] if is_balanced else targets.values
            loss = recipe.loss_options(values, config)
            self._clip_weights = np.ones(len(targets), dtype=np.float32)
        else:
            loss = recipe.loss_options(targets, config)
            self._clip_weights = clip_weights(targets, config, loss).numpy()
        if loss.class_weights is not None:
            loss = replace(loss, class_weights=loss.class_weights.to(accelerator.device))
        self._loss = loss
        self._offsets = offsets
        self.graphs: CudaGraphs | None = None
        if accelerator.device.type == "cuda" and not graph_obstacle(model, recipe, accelerator):
            self.use_graphs(CudaGraphs)

    def use_graphs(self, kind: Callable[..., CudaGraphs]) -> None:
        """Run each step as a graph of a kind, whose learning rates are on the device."""
        device = self._accelerator.device
        self.graphs = kind(self._whole_step, device, num_eager=NUM_EAGER_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)

    def shares(self, keys: Keys) -> list[Keys]:
        """Return this process's clips of each part of a batch."""
        num_parts = self._recipe.gradient_accumulation
        num_processes = self._accelerator.num_processes
        first, count = self._accelerator.process_index, num_parts * num_processes
        return [share_of(keys, index, count) for index in range(first, count, num_processes)]

    def set_lr(self, factor: float) -> None:
        """Set the learning rates to a share of those of the recipe."""
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def seeds(self, seed: int, epoch: int, num_steps: int) -> list[int]:
        """Return seeds for the dropout of an epoch's steps, of which each process has its own."""
        words = np.random.SeedSequence((seed, epoch, self._accelerator.process_index))
        found: list[int] = (words.generate_state(num_steps, np.uint64) >> 1).tolist()
        return found

    def set_seed(self, seed: int) -> None:
        """Seed the dropout of the next step."""
        # torch.manual_seed formats a stack trace at each call where CUDA is installed but unused.
        if self._accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def load_optimizer(self, state: dict[str, object]) -> None:
        """Load the state of the optimizer, which a checkpoint may have from another device."""
        lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def __call__(self, keys: Keys, samples: Iterator[Batch]) -> StepResult:
        """Take one step.

        A clip that could not be read has a loss of 0.

        Args:
            keys: keys of the batch, of all processes.
            samples: yields a batch for each of `shares(keys)`; for an empty share, any clip.
        """
        shares = self.shares(keys)
        total = float(self._clip_weights[keys[:, 0]].sum())
        # DDP averages over the processes.
        scale = torch.tensor(self._accelerator.num_processes / total)
        faults: list[str] = []
        weight = waiting_seconds = 0.0
        losses: list[Tensor] = []
        for number, share in enumerate(shares, 1):
            begun = time.perf_counter()
            batch = next(samples)
            waiting_seconds += time.perf_counter() - begun
            is_counted = batch.is_read
            if len(share):
                faults += batch.faults
                weight += float(self._clip_weights[share[:, 0]] @ is_counted.numpy())
            else:
                is_counted = torch.zeros_like(is_counted)
            inputs = [batch.inputs, batch.positions, batch.mask, batch.targets, is_counted, scale]
            if self._offsets is not None:
                inputs.append(self._offsets[batch.rows])
            if self.graphs is not None:
                num_with_time = 4 if self._config.is_per_frame else 3
                losses.append(self.graphs(*_padded(inputs, num_with_time)))
                break
            there = [one.to(self._accelerator.device, non_blocking=True) for one in inputs]
            is_last = number == len(shares)
            with nullcontext() if is_last else self._accelerator.no_sync(self.network):
                losses.append(self._backward(*there))
        else:
            self._update()
        return StepResult(sum(losses[1:], losses[0]), weight, waiting_seconds, faults)

    def _whole_step(self, *inputs: Tensor) -> Tensor:
        self._clear_gradients()  # of a capture that failed
        loss = self._backward(*inputs)
        assert self.graphs is not None
        # AdamW asks for it in a capture, and warns in an eager step.
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        for group in groups:
            group["capturable"] = self.graphs.is_capturing
        self._update()
        for group in groups:
            group["capturable"] = False
        return loss

    def _backward(
        self,
        features: Tensor,
        positions: Tensor,
        mask: Tensor,
        targets: Tensor,
        is_counted: Tensor,
        scale: Tensor,
        offsets: Tensor | None = None,
    ) -> Tensor:
        """Add the gradients of a part of a batch; return the sum of its losses."""
        logits = self.network(features, positions, mask)
        if offsets is not None:
            logits = logits + offsets
        losses = task_losses(logits, targets, self._config, self._loss, mask)
        loss = (losses * is_counted).sum()
        scaled, scaler = loss * scale, self._accelerator.scaler
        (scaled if scaler is None else scaler.scale(scaled)).backward()
        return loss.detach()

    def _update(self) -> None:
        """Clip the gradients, step the optimizer, and clear them."""
        scaler, max_norm = self._accelerator.scaler, self._recipe.max_grad_norm
        if max_norm is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, max_norm)
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()
        self._clear_gradients()

    def _clear_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def _padded(inputs: list[Tensor], num_with_time: int) -> list[Tensor]:
    """Pad the first inputs [B, T, ...] along time, so that few shapes occur."""
    num_frames = inputs[0].shape[1]
    missing = graph_length(num_frames) - num_frames
    if not missing:
        return inputs
    padded = [F.pad(one, (*[0, 0] * (one.ndim - 2), 0, missing)) for one in inputs[:num_with_time]]
    return padded + inputs[num_with_time:]


def graph_obstacle(model: nn.Module, recipe: Recipe, accelerator: Accelerator) -> str | None:
    """Return why a training step on CUDA cannot be a graph; None if it can."""
    if not isinstance(model, TemporalClassifier):
        return "the backbone is trained, too"
    if accelerator.num_processes > 1:
        return "several processes train together"
    config, encoder = model.config, model.encoder
    found = {
        f"--encoder {config.encoder}": config.encoder not in ENCODERS,
        f"--head {config.head}": config.head != "mlp",
        "--gradient-accumulation": recipe.gradient_accumulation > 1,
        "--gradient-checkpointing": isinstance(encoder, ClsEncoder)
        and encoder.model.gradient_checkpointing,
        "--precision float16": recipe.precision == "float16",
    }
    return next((name for name, applies in found.items() if applies), None)

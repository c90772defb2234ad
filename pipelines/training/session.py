"""What fitting on features and fitting from video share: where a fit runs, the recipe, and the fit
itself with all who look on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ...manifests.errors import SettingsError
from ...manifests.feature_folder import locked
from ...temporal.clips import ClipSampling
from ...temporal.config import TemporalConfig
from ...temporal.dataset import ClipDataset
from ...temporal.distributed import Accelerator, accelerated
from ...temporal.inference import Scored
from ...temporal.metrics import METRICS
from ...temporal.optim import Recipe
from ...temporal.presets import Preset
from ...temporal.progress import Keeping, Watch
from ...temporal.run_folder import RunFolder
from ...temporal.train import Fit
from ..console import say, say_more
from ..inference.figures import figure_text
from ..stopping import StopOnSignals
from .data import Splits
from .log import TrainingLog
from .settings import FitSettings


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """How a training ended.

    Attributes:
        best: the line of its best epoch, from metrics.jsonl, see `temporal/progress.py`.
        last: that of its last epoch.
        lost: what could not be read in any of them, and why.
    """

    best: dict[str, Any]
    last: dict[str, Any]
    lost: list[str]


@dataclass(frozen=True, kw_only=True)
class Session:
    """Where a fit runs.

    Attributes:
        settings: of it.
        folder: of the run.
        accelerator: of the processes that fit together.
        console: silent in all of them but the first.
    """

    settings: FitSettings
    folder: RunFolder
    accelerator: Accelerator
    console: Console

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return bool(self.accelerator.is_main_process)


@contextmanager
def fitting(
    settings: FitSettings, device: str, folder: RunFolder, console: Console | None
) -> Iterator[Session]:
    """Opens a session: the processes find each other, the first locks the run folder, and all have
    the settings' seed.

    Raises:
        FeaturesError: another run is at work in the folder.
    """
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(device, settings.precision))
        gpus = [accelerator.device] if accelerator.device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(gpus))
        is_main = accelerator.is_main_process
        torch.manual_seed(settings.seed)
        with locked(folder) if is_main else nullcontext():
            yield Session(
                settings=settings,
                folder=folder,
                accelerator=accelerator,
                console=console if console and is_main else Console(quiet=True),
            )


def make_recipe(settings: FitSettings, preset_recipe: Preset) -> Recipe:
    """The recipe: what is set, else the preset's.

    Raises:
        SettingsError: a setting does not fit the task.
    """
    has_class_settings = settings.label_smoothing or settings.class_weights != "none"
    if settings.task == "regression" and has_class_settings:
        raise SettingsError(
            "--task regression has no classes: leave out --label-smoothing and --class-weights"
        )
    return Recipe(
        epochs=settings.epochs,
        batch_size=settings.batch_size or preset_recipe.batch_size,
        gradient_accumulation=settings.gradient_accumulation,
        optimizer=settings.optimizer,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        schedule=settings.schedule or preset_recipe.schedule,
        warm_up_epochs=settings.warm_up_epochs,
        clip_gradients=settings.clip_gradients,
        label_smoothing=settings.label_smoothing,
        class_weights=settings.class_weights,
        patience=settings.patience,
        precision=settings.precision,
        seed=settings.seed,
    )


def clip_sampling(settings: FitSettings) -> ClipSampling:
    """Of training clips."""
    return ClipSampling(
        num_frames=settings.clip_frames,
        seconds=settings.clip_seconds,
        jitter=settings.time_jitter,
        drop=settings.frame_drop,
    )


def describe_fit(model: nn.Module, what: str, recipe: Recipe, accelerator: Accelerator) -> str:
    """What is fitted and how, in a line."""
    num_parameters = sum(p.numel() for p in model.parameters())
    num_learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    learning = (
        "" if num_learning == num_parameters else f", {num_learning / 1e6:.1f}M of them learn"
    )
    count, device = accelerator.num_processes, accelerator.device
    place = device.type if count > 1 else str(device)
    return (
        f"{what}, {num_parameters / 1e6:.1f}M parameters{learning}, in {recipe.precision}, "
        f"on {place}{f' x {count} processes' if count > 1 else ''}; {recipe.optimizer}, "
        f"learning rate {recipe.lr:g} ({recipe.schedule}), batches of {recipe.batch_size}"
    )


def run_fit(
    session: Session,
    model: nn.Module,
    config: TemporalConfig,
    recipe: Recipe,
    splits: Splits,
    train: ClipDataset,
    *,
    validate: Callable[[nn.Module, Callable[[], bool]], Scored],
    save: Callable[[Path], None],
    num_loaders: int,
    lr_scales: Mapping[str, float] | None = None,
) -> TrainReport:
    """Fits a model, shows how it goes, and stops on signals; for the arguments see `Fit`.

    Raises:
        SettingsError: the loss is not finite.
        StoppedError: a signal asked for it; the same call resumes.
    """
    settings, folder, console = session.settings, session.folder, session.console
    for settings_of in (config, recipe):
        say_more(console, *(f"  {key}: {value}" for key, value in asdict(settings_of).items()))
    tensorboard = folder.tensorboard if session.is_main else None
    with (
        StopOnSignals() as stop,
        TrainingLog(console, recipe.epochs, tensorboard, splits.class_names) as log,
    ):
        lines = Fit(
            model=model,
            config=config,
            train=train,
            validate=validate,
            validation_targets=splits.targets[1],
            save=save,
            class_names=splits.class_names,
            recipe=recipe,
            folder=folder,
            accelerator=session.accelerator,
            keeping=Keeping(
                checkpoint_minutes=settings.checkpoint_minutes,
                num_checkpoints=settings.keep_checkpoints,
                num_loaders=num_loaders,
            ),
            watch=Watch(
                on_step=log.on_step, on_epoch=log.on_epoch, should_stop=lambda: stop.is_asked
            ),
            lr_scales=lr_scales or {},
        ).run()
    decisive = METRICS[config.task].figures[0]
    best = [line for line in lines if line["is_best"]][-1]
    say(
        console,
        f"{folder.root}: {len(lines)} epochs; best {figure_text(decisive, best[decisive])} (epoch "
        f"{best['epoch']}), last {figure_text(decisive, lines[-1][decisive])}",
    )
    lost = sorted({fault for line in lines for fault in line["lost"]})
    return TrainReport(best=best, last=lines[-1], lost=lost)

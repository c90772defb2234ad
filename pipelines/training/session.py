"""Training session: processes and run folder, the recipe, and the training itself."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ...manifests.atomic import read_json, remove_temporaries, write_json
from ...manifests.errors import SettingsError, counted
from ...manifests.lock import locked
from ...manifests.tabular import Tabular
from ...temporal.checkpoint import RunFolder, kept_epoch
from ...temporal.clips import ClipSampling
from ...temporal.config import FRAME_TASKS, TemporalConfig
from ...temporal.dataset import ClipDataset
from ...temporal.distributed import Accelerator, Precision, accelerated, choose_precision
from ...temporal.metrics import METRICS
from ...temporal.optim import Recipe, named_recipe
from ...temporal.presets import Preset
from ...temporal.step import graph_obstacle
from ...temporal.train import Callbacks, Validation, train
from ..console import metric_text, say, say_details
from ..settings import option_name
from ..signals import StopOnSignals
from .data import Splits
from .log import TrainingLog
from .settings import TrainSettings

# Settings that may change when a run is resumed; the digest of the data covers manifests.
MAY_CHANGE = frozenset(
    "device gradient_checkpointing preload num_workers checkpoint_minutes keep_checkpoints "
    "chunk_frames decoder command source manifest segments "
    "trained_on clip_share longest_seconds longest_tokens".split()
)
REMEDY = "restore it, or give a new folder"
PATHS = frozenset(
    {"source", "manifest", "segments", "from_", "weights"}
)  # settings that may be paths
# Settings that vtnpipe 0.1 stored under other names.
RENAMED = {
    "window": "attention_window",
    "warm_up_epochs": "warmup_epochs",
    "clip_gradients": "max_grad_norm",
    "loaders": "num_workers",
    "every": "frame_stride",
}


@dataclass(frozen=True, kw_only=True)
class TrainReport(Tabular):
    """Result of a training; its table has a row per epoch.

    Attributes:
        epochs: lines of metrics.jsonl.
        best: line of its best epoch in metrics.jsonl, see `temporal.train.EpochReport`.
        last: line of its last epoch.
        kept: line of the epoch that became the run's model.
        lost: clips and videos that could not be read completely in any epoch, and why.
    """

    epochs: list[dict[str, Any]]
    best: dict[str, Any]
    last: dict[str, Any]
    kept: dict[str, Any]
    lost: list[str]

    def table(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of metrics.jsonl, without what could not be read."""
        for line in self.epochs:
            yield {name: value for name, value in line.items() if name != "lost"}


@dataclass(frozen=True, kw_only=True)
class Session:
    """Processes and run folder of a training.

    Attributes:
        settings: settings of the training.
        folder: run folder.
        accelerator: accelerate's view of the processes that train together.
        console: console; silent in all processes but the first.
    """

    settings: TrainSettings
    folder: RunFolder
    accelerator: Accelerator
    console: Console

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return bool(self.accelerator.is_main_process)


@contextmanager
def training_session(
    settings: TrainSettings, device: str, folder: RunFolder, console: Console | None
) -> Iterator[Session]:
    """Connect the processes, lock the run folder, and seed every process.

    Raises:
        FeaturesError: another run is writing to the folder.
    """
    with ExitStack() as stack:
        precision = run_precision(settings, folder, device)
        accelerator = stack.enter_context(accelerated(device, precision))
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


def check_root(files: RunFolder, command: str, *leftovers: Path) -> None:
    """Refuse a folder that contains anything but a run of a command, or leftovers of its start.

    Raises:
        SettingsError: it contains something else.
    """
    if not files.settings.exists():
        check_new(files, *leftovers)
        return
    begun_by = read_json(files.settings, REMEDY).get("command", command)
    if begun_by != command:
        raise SettingsError(
            f"{files.root}: contains a run of `vtnpipe {begun_by}`, which `vtnpipe {command}` "
            "cannot resume; give a new folder"
        )


def check_new(files: RunFolder, *leftovers: Path) -> None:
    """Refuse a folder that contains anything but what a killed writer leaves.

    Raises:
        SettingsError: it contains something else, or is a file.
    """
    if not files.root.exists():
        return
    if not files.root.is_dir():
        raise SettingsError(f"{files.root}: is a file; give a new folder")
    known = {files.lock, *leftovers}
    if all(path in known or path.suffix == ".tmp" for path in files.root.iterdir()):
        return
    raise SettingsError(f"{files.root}: not empty; give a new folder")


def begin_run(
    files: RunFolder, *settings: Any, command: str, data: str, source: str | Path
) -> bool:
    """Record what a new run is for, or check that the folder contains the same run.

    Args:
        files: run folder.
        settings: dataclasses to record.
        command: command that begins the run.
        data: digest of the training data.
        source: path of the data, recorded for reports.

    Returns:
        whether nothing has been trained yet.

    Raises:
        SettingsError: the folder contains a run of other settings or other data.
    """
    for folder in (files.root, files.checkpoints):
        remove_temporaries(folder)
    value: dict[str, Any] = {"command": command, "data": data, "source": str(source)}
    for one in settings:
        value |= asdict(one)
    for key in PATHS & value.keys():
        if value[key] is not None and Path(value[key]).exists():  # otherwise it is a word
            value[key] = str(Path(value[key]).absolute())
    if files.settings.exists() and any(files.checkpoints.glob("*.pt")):
        stored = read_settings(files)
        if "keep" in value and "keep" not in stored:
            raise SettingsError(
                f"{files.root}: was begun by vtnpipe 0.1, whose recipes were others; finish it "
                "with that version, or train into a new folder (its model can be used as it is)"
            )
        compared = (value.keys() | stored.keys()) - MAY_CHANGE
        differences = [
            f"{key if key == 'data' else option_name(key)} is {value.get(key)!r} here and "
            f"{stored.get(key)!r} there"
            for key in sorted(compared)
            if value.get(key) != stored.get(key)
        ]
        if differences:
            raise SettingsError(
                f"{files.root}: contains another run: {'; '.join(differences)} (data: the videos "
                "and their classes); use its settings and data to resume it, or another folder"
            )
        where = {
            key: value[key] for key in ("command", "source", "manifest", "segments") if key in value
        }
        write_json(stored | where, files.settings)
        return False
    write_json(value, files.settings)
    return True


def read_settings(files: RunFolder) -> dict[str, Any]:
    """Return the settings that a run was begun with; empty for a model trained elsewhere."""
    if not files.settings.exists():
        return {}
    found: dict[str, Any] = read_json(files.settings, REMEDY)
    return {RENAMED.get(key, key): value for key, value in found.items()}


def run_precision(settings: TrainSettings, files: RunFolder, device: str) -> Precision:
    """Return the precision of a run: as given, else that which it began with, else the device's."""
    stored = read_settings(files).get("precision")
    if settings.precision == "auto" and stored is not None and any(files.checkpoints.glob("*.pt")):
        found: Precision = stored
        return found
    return choose_precision(settings.precision, device)


def make_recipe(
    settings: TrainSettings, preset: Preset, splits: Splits, precision: Precision
) -> Recipe:
    """Return the recipe for two splits: as given, else the named recipe's or the preset's.

    Raises:
        SettingsError: a setting does not fit the task.
    """
    has_class_settings = settings.label_smoothing or settings.class_weights != "none"
    if settings.task == "regression" and has_class_settings:
        raise SettingsError(
            "--task regression has no classes: leave out --label-smoothing and --class-weights"
        )
    names = [field.name for field in fields(Recipe) if hasattr(settings, field.name)]
    given = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    given["precision"] = precision
    if settings.recipe_name == "paper":
        given = {"batch_size": preset.batch_size, "schedule": preset.schedule, **given}
    return named_recipe(
        settings.recipe_name,
        given,
        num_clips=len(splits.train.rows),
        num_validation_videos=len(splits.validation.rows),
        is_per_frame=settings.task in FRAME_TASKS,
    )


def clip_sampling(settings: TrainSettings) -> ClipSampling:
    """Return the sampling of training clips."""
    return ClipSampling(
        num_frames=settings.clip_frames,
        seconds=settings.clip_seconds,
        spacing="linspace" if settings.follows_authors else "even",
        jitter=settings.time_jitter,
        drop=settings.frame_drop,
    )


def describe_training(model: nn.Module, what: str, recipe: Recipe, accelerator: Accelerator) -> str:
    """Return model, device and recipe in one line."""
    num_parameters = sum(p.numel() for p in model.parameters())
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    trainable = (
        "" if num_trainable == num_parameters else f", {num_trainable / 1e6:.1f}M of them trainable"
    )
    count, device = accelerator.num_processes, accelerator.device
    place = device.type if count > 1 else str(device)
    if device.type == "cuda":
        obstacle = graph_obstacle(model, recipe, accelerator)
        place += f" (no CUDA graphs: {obstacle})" if obstacle else " (CUDA graphs)"
    return (
        f"{what}, {num_parameters / 1e6:.1f}M parameters{trainable}, in {recipe.precision}, "
        f"on {place}{f' x {count} processes' if count > 1 else ''}; {recipe.optimizer}, "
        f"learning rate {recipe.lr:g} ({recipe.schedule}), {recipe.epochs} epochs, batches of "
        f"{recipe.batch_size}"
    )


def run_training(
    session: Session,
    model: nn.Module,
    config: TemporalConfig,
    recipe: Recipe,
    splits: Splits,
    dataset: ClipDataset,
    *,
    validate: Callable[[nn.Module, Callable[[], bool]], Validation],
    save: Callable[[Path], None],
    num_workers: int,
    lr_scales: Mapping[str, float] | None = None,
    offsets: Tensor | None = None,
) -> TrainReport:
    """Train a model with a log, and stop on signals; for the arguments see `temporal.train.train`.

    Raises:
        SettingsError: the loss is not finite.
        StoppedError: a signal asked for it; the same call resumes.
    """
    folder, console = session.folder, session.console
    for one in (config, recipe):
        say_details(console, *(f"  {key}: {value}" for key, value in asdict(one).items()))
    tensorboard = folder.tensorboard if session.is_main else None
    with (
        StopOnSignals() as stop,
        TrainingLog(console, recipe.epochs, tensorboard) as log,
    ):
        lines = train(
            model,
            config,
            dataset,
            recipe,
            folder,
            session.accelerator,
            validate=validate,
            save=save,
            checkpoints=session.settings.checkpoints,
            callbacks=Callbacks(
                on_step=log.on_step, on_epoch=log.on_epoch, should_stop=lambda: stop.is_asked
            ),
            num_workers=num_workers,
            lr_scales=lr_scales,
            offsets=offsets,
        )
    decisive = METRICS[config.task].names[0]
    best, kept = kept_epoch(lines, "best"), kept_epoch(lines, recipe.keep)
    num_validation = len(splits.validation.rows)
    say(
        console,
        f"{folder.root}: {len(lines)} epochs; kept the {'best' if kept is best else 'last'}, "
        f"{metric_text(decisive, kept[decisive])} on {counted(num_validation, 'video')} of split "
        f"{session.settings.val_split} (best {metric_text(decisive, best[decisive])}, epoch "
        f"{best['epoch']})",
    )
    lost = sorted({fault for line in lines for fault in line["lost"]})
    return TrainReport(epochs=lines, best=best, last=lines[-1], kept=kept, lost=lost)

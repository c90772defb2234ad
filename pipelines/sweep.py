"""`vtnpipe sweep`: trainings over a grid of recipes and seeds, one table, the winner on test.

    OUT/runs/RECIPE-seedN/   a run folder per training
    OUT/sweep.csv            a line per recipe: mean and standard deviation over seeds
    OUT/sweep.json           the same, and the winner's metric on the test split

Each training is a process of its own, started by a Dask worker, so that a sweep uses all cores, or
the workers of a cluster. The same command resumes.
"""

import csv
import ctypes
import itertools
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from ..extract.cores import num_cpus
from ..manifests.atomic import atomic_text, read_json, write_json
from ..manifests.errors import EXIT_OK, FeaturesError, SettingsError, StoppedError
from ..manifests.feature_folder import FeatureFolder
from ..manifests.lock import locked
from ..manifests.manifest import read_manifest
from ..temporal.checkpoint import RunFolder, kept_epoch, read_epochs
from ..temporal.metrics import METRICS
from .console import CountProgress, metric_text, say
from .dask_cluster.client import finished_results, open_client
from .dask_cluster.jobqueue import THREADS_PER_WORKER, ClusterSettings
from .evaluate import evaluate
from .inference.evaluation import EvaluateSettings
from .models.model_folder import read_config
from .options import settings_options
from .settings import at_least, device_setting, make_folder, option_name, setting
from .training.session import read_settings
from .training.settings import TrainTemporalSettings

GRID = ("lr", "weight_decay", "layers", "encoder")  # settings that a sweep varies
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
NUM_ERROR_LINES = 3  # of a failed training


@dataclass(frozen=True, kw_only=True)
class SweepSettings(ClusterSettings):
    """Settings of `vtnpipe sweep`; lists are separated by commas."""

    lr: str = setting("2e-4,5e-4,1e-3", help="Learning rates to try.", metavar="LIST")
    weight_decay: str = setting("0.05", help="Weight decays to try.", metavar="LIST")
    layers: str = setting("2", help="Numbers of encoder layers to try.", metavar="LIST")
    encoder: str = setting("longformer", help="Encoders to try.", metavar="LIST")
    seeds: int = setting(3, help="Trainings of each recipe.", check=at_least(1))
    train_config: str | None = setting(
        None,
        help="YAML file with other options of train-temporal, for all trainings.",
        metavar="FILE",
    )
    test_split: str = setting("test", help="Split that the winner is scored on, once.")
    workers: int | None = setting(
        None,
        help="Worker processes on this machine, each of which trains two models at a time; by "
        "default half as many as cores, or one with a GPU.",
        check=at_least(1),
    )
    device: str = device_setting("Device of the trainings.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for recipe in self.recipes:
            TrainTemporalSettings(**recipe)  # refuses invalid values before anything runs

    @property
    def recipes(self) -> list[dict[str, Any]]:
        """All combinations of the lists, as settings of train-temporal.

        Raises:
            SettingsError: a list has something else than numbers.
        """
        kinds: dict[str, type] = {"lr": float, "weight_decay": float, "layers": int, "encoder": str}
        lists = []
        for name in GRID:
            try:
                lists.append([kinds[name](one.strip()) for one in getattr(self, name).split(",")])
            except ValueError:
                raise SettingsError(
                    f"{option_name(name)} {getattr(self, name)!r}: it must be numbers separated by "
                    "commas"
                ) from None
        return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*lists)]


@dataclass(frozen=True, kw_only=True)
class RecipeScore:
    """Metric of one recipe on the validation split.

    Attributes:
        recipe: settings that the sweep varies.
        name: name of its runs, without the seed.
        values: decisive metric of each seed's run.
    """

    recipe: dict[str, Any]
    name: str
    values: list[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over the seeds; 0 for one."""
        return _std(self.values)


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """Result of a sweep, also stored in sweep.json.

    Attributes:
        metric: name of the decisive metric.
        scores: score of each recipe, the best first.
        test: the winner's metric on the test split, of each seed; empty without such a split.
    """

    metric: str
    scores: list[RecipeScore]
    test: list[float]


def sweep(
    features: str | Path,
    out: str | Path,
    settings: SweepSettings | None = None,
    *,
    console: Console | None = None,
) -> SweepReport:
    """Train every recipe with every seed, and score the best one on the test split.

    The validation split chooses; the test split is scored for the winner only.

    Args:
        features: feature folder.
        out: folder of the runs and the table; created if missing.
        settings: by default `SweepSettings()`.
        console: for progress and the table; by default nothing is printed.

    Raises:
        VtnpipeError: features or a setting is invalid, or a training failed.
        StoppedError: the workers were lost; the same call resumes.
    """
    settings = settings or SweepSettings()
    console = console or Console(quiet=True)
    root = Path(out)
    make_folder(root / "runs")
    with locked(RunFolder(root)):
        commands = [
            _command(
                features, root / "runs" / _folder(run_name(recipe), seed), recipe, seed, settings
            )
            for recipe in settings.recipes
            for seed in range(settings.seeds)
        ]
        _train_all(commands, settings, root, console)
        scores = [
            RecipeScore(
                recipe=recipe,
                name=(name := run_name(recipe)),
                values=[
                    _kept_value(root / "runs" / _folder(name, seed))
                    for seed in range(settings.seeds)
                ],
            )
            for recipe in settings.recipes
        ]
        first = RunFolder(root / "runs" / _folder(scores[0].name, 0))
        kind = METRICS[read_config(first).temporal.task]
        metric = kind.names[0]
        scores.sort(key=lambda one: one.mean if kind.is_better_lower else -one.mean)
        winner = scores[0]
        test = _stored_test(winner, settings.test_split, root)
        manifest = read_settings(first)["manifest"] or FeatureFolder(Path(features)).manifest
        has_test = any(row.split == settings.test_split for row in read_manifest(manifest))
        if not test and has_test:
            stored = read_settings(RunFolder(root / "runs" / _folder(winner.name, 0)))
            options = EvaluateSettings(
                split=settings.test_split,
                manifest=stored["manifest"],
                drop_partial=stored["drop_partial"],
                device=settings.device,
                bootstrap=0,
            )
            for seed in range(settings.seeds):
                found = evaluate(root / "runs" / _folder(winner.name, seed), features, options)
                test.append(float(found.values[metric] or 0.0))
        report = SweepReport(metric=metric, scores=scores, test=test)
        _write(report, settings.test_split, root)
    _print(report, settings, root, console)
    return report


def run_name(recipe: dict[str, Any]) -> str:
    """Return the name of a recipe's runs, without the seed.

    >>> run_name({"lr": 5e-4, "weight_decay": 0.05, "layers": 2, "encoder": "hf:bert"})
    'lr0.0005-decay0.05-layers2-hf_bert'
    """
    encoder = "".join(one if one.isalnum() else "_" for one in recipe["encoder"])
    decay, layers = f"{recipe['weight_decay']:g}", recipe["layers"]
    return f"lr{recipe['lr']:g}-decay{decay}-layers{layers}-{encoder}"


def _folder(name: str, seed: int) -> str:
    return f"{name}-seed{seed}"


def _command(
    features: str | Path, run: Path, recipe: dict[str, Any], seed: int, settings: SweepSettings
) -> list[str]:
    """Return the command of one training."""
    command = [sys.executable, "-m", "vtnpipe", "train-temporal", str(Path(features).absolute())]
    command += [str(run.absolute()), "--seed", str(seed), "--device", settings.device, "--quiet"]
    for name, value in recipe.items():
        command += [option_name(name), str(value)]
    if settings.train_config is not None:
        command += ["--config", str(Path(settings.train_config).absolute())]
    return command


def _train_all(
    commands: Sequence[list[str]], settings: SweepSettings, root: Path, console: Console
) -> None:
    """Run the trainings on the workers.

    Raises:
        FeaturesError: a training failed.
        StoppedError: a training was stopped.
    """
    has_gpu = settings.device != "cpu" and torch.cuda.is_available()
    workers = settings.workers or (1 if has_gpu else max(1, num_cpus() // THREADS_PER_WORKER))
    with (
        open_client(
            settings, num_workers=workers, logs=root / "jobs", say=lambda line: say(console, line)
        ) as client,
        CountProgress("sweep", "trainings", len(commands), console) as progress,
    ):
        futures = client.map(_train, commands, pure=False)
        for code, command, errors in finished_results(futures):
            if code:
                client.cancel(futures)
                kind = StoppedError if code in (3, 130, 143, -2, -15) else FeaturesError
                raise kind(f"{' '.join(command[3:])} ended with code {code}: {errors}")
            progress.count()


def _train(command: list[str]) -> tuple[int, list[str], str]:
    """Run one training in a process; return its exit code, the command and its last errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    training = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=_end_with_parent,  # it only calls prctl
    )
    errors = training.communicate()[1].strip().splitlines()
    return training.returncode, command, " ".join(errors[-NUM_ERROR_LINES:])


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM, on which a training saves a checkpoint, when the worker ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _kept_value(run: Path) -> float:
    """Return the decisive validation metric of the epoch that a run kept."""
    files = RunFolder(run)
    metric = METRICS[read_config(files).temporal.task].names[0]
    return float(kept_epoch(read_epochs(files), read_settings(files)["keep"])[metric])


def _std(values: list[float]) -> float:
    """Return the standard deviation of values; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _stored_test(winner: RecipeScore, test_split: str, root: Path) -> list[float]:
    """Return the test metrics that an earlier sweep stored for the same winner; else none."""
    path = root / "sweep.json"
    if not path.exists():
        return []
    stored = read_json(path, "remove it, and run the sweep again")
    is_same = (stored["winner"], stored["test_split"]) == (winner.recipe, test_split)
    is_same = is_same and stored["recipes"][0]["values"] == winner.values
    return [float(value) for value in stored["test"]] if is_same else []


def _write(report: SweepReport, test_split: str, root: Path) -> None:
    with atomic_text(root / "sweep.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*GRID, f"{report.metric}_mean", f"{report.metric}_std", "num_seeds"))
        for score in report.scores:
            values = (f"{score.mean:.6f}", f"{score.std:.6f}", len(score.values))
            writer.writerow((*score.recipe.values(), *values))
    record = {
        "metric": report.metric,
        "recipes": [
            {**one.recipe, "values": one.values, "mean": one.mean, "std": one.std}
            for one in report.scores
        ],
        "winner": report.scores[0].recipe,
        "test_split": test_split,
        "test": report.test,
    }
    write_json(record, root / "sweep.json")


def _print(report: SweepReport, settings: SweepSettings, root: Path, console: Console) -> None:
    width = max(len(one.name) for one in report.scores)
    for one in report.scores:
        say(
            console,
            f"  {one.name.ljust(width)}  {metric_text(report.metric, one.mean)} ± {one.std:.4f} "
            f"({len(one.values)} seeds)",
        )
    winner = report.scores[0]
    say(console, f"{root}: {winner.name} is the best on the validation split")
    if report.test:
        spread = _std(report.test)
        mean = metric_text(report.metric, statistics.mean(report.test))
        say(console, f"split {settings.test_split}, the winner only: {mean} ± {spread:.4f}")


@click.command("sweep")
@click.argument("features")
@click.argument("out")
@settings_options(SweepSettings)
def command(features: str, out: str, console: Console, **options: Any) -> int:
    """Train recipes over seeds on the stored FEATURES, with runs and a table in the folder OUT.

    The validation split chooses the winner, which is scored on the test split. The same command
    resumes.
    """
    sweep(features, out, SweepSettings(**options), console=console)
    return EXIT_OK

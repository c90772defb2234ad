"""Run folders: what begins or resumes a run, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_folders import made_up_features
from stage_two import SETTINGS, SHAPE
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import read_manifest
from vtnpipe.pipelines.finetune import finetune
from vtnpipe.pipelines.report import report
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.data import Splits, read_splits
from vtnpipe.pipelines.training.finetune_settings import FinetuneSettings
from vtnpipe.pipelines.training.session import (
    begin_run,
    check_new,
    check_root,
    make_recipe,
    read_settings,
)
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import RunFolder
from vtnpipe.temporal.optim import Recipe
from vtnpipe.temporal.presets import PRESETS

WILD = replace(SETTINGS, lr=1e30, batch_size=4)


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Made-up features of two classes, `f`."""
    splits = {split: {f"{split}{n}": "ab"[n % 2] for n in range(8)} for split in ("train", "val")}
    return made_up_features(tmp_path / "f", splits)


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    device: str = "cpu"
    manifest: str | None = None


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., bool]:
    """Begins a run in the folder `run`, as a training does."""
    files = RunFolder(tmp_path / "run")
    files.checkpoints.mkdir(parents=True)

    def call(settings: Settings, data: str = "d", source: str = "features") -> bool:
        return begin_run(files, settings, command="train-temporal", data=data, source=source)

    return call


def _checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints/epoch-000001-step-00000000.pt").touch()


def test_a_run_without_a_checkpoint_begins_anew(tmp_path: Path, begin: Callable[..., bool]) -> None:
    assert begin(Settings())
    (tmp_path / "run/.x.tmp").touch()
    assert begin(Settings(lr=0.2), data="other")
    assert read_settings(RunFolder(tmp_path / "run"))["lr"] == 0.2


def test_a_run_with_a_checkpoint_resumes_with_the_same_settings_and_data(
    tmp_path: Path, begin: Callable[..., bool]
) -> None:
    assert begin(Settings())
    _checkpoint(tmp_path)
    assert not begin(Settings(device="cuda:1", manifest="m.csv"), source="elsewhere")
    stored = read_settings(RunFolder(tmp_path / "run"))
    assert (stored["source"], stored["manifest"]) == ("elsewhere", "m.csv")
    assert (stored["device"], stored["lr"], stored["data"]) == ("cpu", 0.1, "d")
    with pytest.raises(SettingsError, match=r"--lr is 0\.2 here and 0\.1 there"):
        begin(Settings(lr=0.2))
    with pytest.raises(SettingsError, match="data is 'e' here and 'd' there"):
        begin(Settings(), data="e")


def test_settings_of_vtnpipe_0_1_are_read_by_their_present_names(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    old = {"window": 4, "warm_up_epochs": 1.0, "clip_gradients": 2.0, "loaders": 3, "every": 5}
    files.settings.write_text(json.dumps({**old, "lr": 0.1}))
    assert read_settings(files) == {
        "attention_window": 4,
        "warmup_epochs": 1.0,
        "max_grad_norm": 2.0,
        "num_workers": 3,
        "frame_stride": 5,
        "lr": 0.1,
    }
    assert read_settings(RunFolder(tmp_path / "imported")) == {}


def test_only_new_folders_and_runs_of_the_same_command_are_accepted(tmp_path: Path) -> None:
    files = RunFolder(tmp_path / "run")
    check_new(files)
    files.root.mkdir()
    files.lock.touch()
    (files.root / "x.tmp").touch()
    check_new(files)
    files.index.touch()
    check_new(files, files.index)
    with pytest.raises(SettingsError, match="not empty"):
        check_new(files)
    files.settings.write_text('{"command": "finetune"}')
    check_root(files, "finetune")
    with pytest.raises(SettingsError, match="contains a run of `vtnpipe finetune`"):
        check_root(files, "train-temporal")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="is a file"):
        check_new(RunFolder(tmp_path / "file"))


def test_the_recipe_is_the_named_ones_unless_given(features: Path) -> None:
    preset = PRESETS["r50-vtn"]
    splits = _splits(features)

    def recipe(**values: Any) -> Recipe:
        return make_recipe(TrainTemporalSettings(**values), preset, splits, "float32")

    paper = recipe(recipe="paper", epochs=7)
    assert (paper.batch_size, paper.schedule, paper.epochs) == (32, "cosine", 7)
    given = recipe(recipe="paper", batch_size=4, schedule="steps", weight_decay=0.0)
    assert (given.batch_size, given.schedule, given.weight_decay) == (4, "steps", 0.0)
    default = recipe()
    assert (default.optimizer, default.batch_size, default.keep) == ("adamw", 16, "last")
    assert default.epochs == 60
    for changes in ({"label_smoothing": 0.1}, {"class_weights": "balanced"}):
        with pytest.raises(SettingsError, match="--task regression has no classes"):
            recipe(task="regression", **changes)


def _splits(features: Path) -> Splits:
    store = open_features(features)
    rows = read_manifest(store.folder.manifest)
    return read_splits(
        rows,
        store.statuses,
        TrainTemporalSettings(),
        what="features",
        remedy="none",
        times=lambda _: np.arange(4.0),
    )


def test_other_labels_in_the_same_run_are_refused(features: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_temporal(features, run, SETTINGS)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    manifest = features / "manifest.csv"
    manifest.write_text(manifest.read_text().replace(",b,", ",zebra,"))
    with pytest.raises(SettingsError, match="contains another run: data is"):
        train_temporal(features, run, SETTINGS)
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_run_that_failed_before_its_first_epoch_begins_again(
    features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with pytest.raises(SettingsError, match="the loss became"):
        train_temporal(features, run, WILD)
    train_temporal(features, run, SETTINGS)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


def test_metrics_torn_by_a_kill_are_written_again(features: Path, tmp_path: Path) -> None:
    train_temporal(features, tmp_path / "run", SETTINGS)
    metrics = tmp_path / "run/metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text('{"epoch": 1, "to')
    train_temporal(features, tmp_path / "run", SETTINGS)
    assert metrics.read_text() == whole


def test_a_run_resumes_from_wherever_its_files_are_named(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train_temporal(features, run, SETTINGS)
    monkeypatch.chdir(tmp_path)
    relative = replace(SETTINGS, manifest="f/manifest.csv")
    train_temporal("f", "run", relative)  # the same rows
    settings = json.loads((run / "settings.json").read_text())
    assert settings["command"] == "train-temporal"
    del settings["source"]  # not stored by the first versions
    (run / "settings.json").write_text(json.dumps(settings))
    features.rename(tmp_path / "moved")
    train_temporal("moved", "run", SETTINGS)
    assert json.loads((run / "settings.json").read_text())["source"] == str(tmp_path / "moved")
    assert "is gone" not in report(run).read_text()
    with pytest.raises(SettingsError, match="contains a run of `vtnpipe train-temporal`"):
        finetune(tmp_path / "moved/manifest.csv", run, FinetuneSettings(from_="none", **SHAPE))

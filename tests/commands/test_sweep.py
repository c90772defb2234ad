"""`vtnpipe sweep`: a grid over seeds on a Dask cluster, its table, the winner on test, resuming."""

import csv
import json
from pathlib import Path

import pytest
from command_line import run_cli
from feature_folders import made_up_features
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.pipelines.sweep import SweepSettings, sweep

SMALL = "layers: 1\nheads: 2\nintermediate: 16\nhead_dim: 8\nhidden_dim: 8\nepochs: 2\n"


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Made-up features of two classes, with a test split."""
    splits = {
        split: {f"{split}{n}": "ab"[n % 2] for n in range(8)} for split in ("train", "val", "test")
    }
    return made_up_features(tmp_path / "f", splits)


@pytest.mark.slow
def test_a_grid_over_seeds_names_the_winner_and_resumes(features: Path, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    command = ("sweep", "f", "out", "--lr", "1e-3", "--encoder", "longformer,mean")
    options = ("--layers", "1", "--seeds", 2, "--train-config", "small.yaml", "--workers", 1)
    ran = run_cli(tmp_path, *command, *options)
    with (tmp_path / "out/sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2
    means = [float(line["top1_mean"]) for line in lines]
    assert means == sorted(means, reverse=True)
    assert all(line["num_seeds"] == "2" for line in lines)
    record = json.loads((tmp_path / "out/sweep.json").read_text())
    assert record["winner"]["encoder"] == lines[0]["encoder"]
    assert len(record["test"]) == 2
    assert "the best on the validation split" in ran.stdout
    assert "split test, the winner only: top-1" in ran.stdout
    runs = sorted((tmp_path / "out/runs").iterdir())
    assert len(runs) == 4
    for run in runs:
        stored = json.loads((run / "settings.json").read_text())
        assert (stored["epochs"], stored["head_dim"]) == (2, 8)
    scored = {run for run in runs if (run / "predictions").exists()}
    assert len(scored) == 2  # the winner's seeds only

    times = {run: (run / "model.safetensors").stat().st_mtime_ns for run in runs}
    tests = {run: (run / "predictions/test.json").stat().st_mtime_ns for run in scored}
    assert (
        run_cli(tmp_path, *command, *options).stdout.splitlines()[-1]
        == (ran.stdout.splitlines()[-1])
    )
    assert {run: (run / "model.safetensors").stat().st_mtime_ns for run in runs} == times
    assert {run: (run / "predictions/test.json").stat().st_mtime_ns for run in scored} == tests


@pytest.mark.slow
def test_a_training_that_fails_ends_the_sweep_with_its_message(
    features: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text("heads: 7\n")
    settings = SweepSettings(lr="1e-3", seeds=1, workers=1, train_config=str(tmp_path / "bad.yaml"))
    with pytest.raises(FeaturesError, match="--heads 7: the number of heads must divide"):
        sweep(features, tmp_path / "out", settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "1e-3,fast"}, "--lr '1e-3,fast': it must be numbers"),
        ({"layers": "0"}, "--layers 0: it must be at least 1"),
        ({"encoder": "rnn"}, "--encoder 'rnn'"),
        ({"seeds": 0}, "--seeds 0"),
    ],
)
def test_invalid_grids_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SweepSettings(**values)  # type: ignore[arg-type]

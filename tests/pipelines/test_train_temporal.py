"""`vtnpipe train-temporal`, end to end through the command line."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_cli
from rich.console import Console
from stage_two import SETTINGS, SMALL, edit
from vtnpipe.manifests.errors import (
    BackboneError,
    FeaturesError,
    ManifestError,
    SettingsError,
    VtnpipeError,
)
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.pipelines.evaluate import EvaluateSettings, evaluate
from vtnpipe.pipelines.extraction.feature_spec import settle, with_model_settings
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.models.model_folder import read_config
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.predict import PredictSettings, predict
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings, train_temporal
from vtnpipe.temporal.checkpoint import read_weights
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.run_folder import RunFolder


def test_the_whole_way(folder: Path) -> None:
    ran = run_cli(folder, "train-temporal", "f", "run", *SMALL)
    assert "8 training and 4 validation videos, 2 classes" in ran.stdout
    assert "split val: of 5 videos, 1 without features" in ran.stdout
    assert "sgd, learning rate 0.001 (steps), batches of 16" in ran.stdout
    assert "epoch   2/2" in ran.stdout
    names = {path.name for path in (folder / "run").iterdir()}
    assert {"config.json", "model.safetensors", "last.safetensors", "backbone.safetensors"} <= names
    assert {"metrics.jsonl", "settings.json", "checkpoints"} <= names
    config = json.loads((folder / "run/config.json").read_text())
    assert config["class_names"] == ["down", "up"]
    before = (folder / "run/model.safetensors").read_bytes()
    again = run_cli(folder, "train-temporal", "f", "run", *SMALL).stdout
    assert "epoch   " not in again
    assert (folder / "run/model.safetensors").read_bytes() == before
    ran = run_cli(folder, "train-temporal", "f", "run", *SMALL, "--lr", 0.1, code=2)
    assert "holds another run: --lr is 0.1 here and 0.001 there" in ran.stderr

    ran = run_cli(folder, "evaluate", "run", "f", code=1)
    assert "videos: 5 expected, 4 scored, 1 missing, 0 partial  <- not all" in ran.stdout
    figures = json.loads((folder / "run/predictions/val.json").read_text())
    with (folder / "run/predictions/val.csv").open() as file:
        lines = list(csv.DictReader(file))
    hits = [line["label"] == line["predicted"] for line in lines]
    assert figures["metrics"]["top1"] == pytest.approx(sum(hits) / 4)
    assert sum(map(sum, figures["metrics"]["confusion"])) == 4
    assert "top-1" in run_cli(folder, "evaluate", "run", "f", "--split", "train").stdout

    probabilities = {}
    for mode, arguments in {
        "end-to-end": ("0.mp4", "11.mp4"),
        "chunked": ("0.mp4", "11.mp4", "--chunk-frames", 7),
        "features": ("v0", "v11", "--features", "f"),
    }.items():
        output = f"{mode}.csv"
        ran = run_cli(folder, "predict", "run", *arguments, "--mode", mode, "--output", output)
        assert "%  up" in ran.stdout
        with (folder / output).open() as file:
            rows = list(csv.DictReader(file))
        probabilities[mode] = [[float(row[name]) for name in ("down", "up")] for row in rows]
        assert len(rows) == 2
    for mode in ("chunked", "features"):
        np.testing.assert_allclose(probabilities[mode], probabilities["end-to-end"], atol=1e-4)
    ran = run_cli(folder, "predict", "run", "0.mp4", "none.mp4", code=1)
    assert "none.mp4  (missing:" in ran.stdout


def test_other_data_in_the_same_run_is_refused(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    before = {p.name: p.read_bytes() for p in (folder / "run").iterdir() if p.is_file()}
    manifest = folder / "f/manifest.csv"
    manifest.write_text(manifest.read_text().replace("mp4,down,", "mp4,zebra,"))
    with pytest.raises(SettingsError, match="holds another run: data is"):
        train_temporal(folder / "f", folder / "run", SETTINGS)
    assert before == {p.name: p.read_bytes() for p in (folder / "run").iterdir() if p.is_file()}


def test_a_run_that_failed_before_its_first_epoch_may_begin_again(folder: Path) -> None:
    wild = TrainTemporalSettings(**{**vars(SETTINGS), "lr": 1e30, "batch_size": 4})
    with pytest.raises(SettingsError, match="the loss became"):
        train_temporal(folder / "f", folder / "run", wild)
    train_temporal(folder / "f", folder / "run", SETTINGS)
    assert len((folder / "run/metrics.jsonl").read_text().splitlines()) == 2
    (folder / "run/metrics.jsonl").write_text('{"epoch": 1, "to')  # torn, and mended
    train_temporal(folder / "f", folder / "run", SETTINGS)
    assert len((folder / "run/metrics.jsonl").read_text().splitlines()) == 2


def test_positions_may_be_frame_indices(folder: Path) -> None:
    settings = TrainTemporalSettings(**{**vars(SETTINGS), "positions": "frames"})
    train_temporal(folder / "f", folder / "run", settings)
    assert read_config(RunFolder(folder / "run")).temporal.position_fps is None
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


def test_mean_pooling(folder: Path) -> None:
    settings = TrainTemporalSettings(encoder="mean", head_dim=8, epochs=1, optimizer="adamw")
    train_temporal(folder / "f", folder / "run", settings)
    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    assert network.config.temporal.encoder == "mean"
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


def test_several_labels_a_video_through_the_command_line(folder: Path) -> None:
    manifest = folder / "m.csv"
    text = manifest.read_text().replace(",up,", ",up|low,").replace("v0,0.mp4,up|low", "v0,0.mp4,")
    manifest.write_text(text)
    options = ("--task", "multi-label", "--manifest", "m.csv")
    ran = run_cli(folder, "train-temporal", "f", "run", *SMALL, *options)
    assert "2/2" in ran.stdout
    assert "mAP" in ran.stdout
    ran = run_cli(folder, "evaluate", "run", "f", "--manifest", "m.csv", code=1)
    assert "average precision" in ran.stdout
    figures = json.loads((folder / "run/predictions/val.json").read_text())
    assert figures["classes"] == ["down", "low", "up"]
    assert figures["metrics"]["per_class"].keys() == {"down", "low", "up"}
    with (folder / "run/predictions/val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"up|low", "down"}
    for row in rows:
        named = {name for name in figures["classes"] if float(row[name]) >= 0.5}
        assert set(row["predicted"].split("|")) - {""} == named
    ran = run_cli(folder, "predict", "run", "--mode", "features", "--features", "f", code=1)
    assert "%  low" in ran.stdout


def test_regression_learns_and_speaks_in_the_labels_unit(folder: Path) -> None:
    manifest = folder / "m.csv"
    lines = manifest.read_text().splitlines()
    for number in range(12):  # what a clip shows of its number: the brightness of its blocks
        fields = lines[number + 1].split(",")
        lines[number + 1] = ",".join([*fields[:2], str(1000 + 10 * number), fields[3]])
    manifest.write_text("\n".join(lines[:-1]) + "\n")
    values = {**vars(SETTINGS), "task": "regression", "manifest": str(manifest), "epochs": 60}
    values |= {"optimizer": "adamw", "lr": 1e-2, "encoder": "mean", "head_dropout": 0.0}
    report = train_temporal(folder / "f", folder / "run", TrainTemporalSettings(**values))
    config = read_config(RunFolder(folder / "run"))
    assert config.class_names == []
    assert config.temporal.num_classes == 1
    assert 1000 < config.temporal.target_mean < 1110
    spread = config.temporal.target_std
    assert report.best["rmse"] == min(json.loads(line)["rmse"] for line in _lines(folder / "run"))
    settings = EvaluateSettings(split="train", manifest=str(manifest))
    figures = evaluate(folder / "run", folder / "f", settings).figures
    rmse = figures["rmse"]
    assert rmse is not None
    assert rmse < 0.8 * spread
    prediction = predict(
        folder / "run", ["v4"], PredictSettings(mode="features", features=str(folder / "f"))
    )
    logits = prediction.predictions[0].logits
    assert logits is not None
    assert 950 < float(logits[0]) < 1160


def _lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def test_an_encoder_and_a_head_of_ones_own(folder: Path) -> None:
    own = ("--encoder", "toy_encoders:recurrent", "--head", "toy_encoders:one_layer")
    ran = run_cli(folder, "train-temporal", "f", "run", *own, "--epochs", 1)
    assert "toy_encoders:recurrent, " in ran.stdout
    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    assert type(network.temporal.encoder).__name__ == "Recurrent"
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


@pytest.mark.parametrize("encoder", ["full", "perceiver"])
def test_other_encoders_and_ablations(folder: Path, encoder: str) -> None:
    values = {
        **vars(SETTINGS),
        "encoder": encoder,
        "position_embedding": "sinusoidal",
        "attention_window": 2,
    }
    train_temporal(folder / "f", folder / "run", TrainTemporalSettings(**values))
    temporal = read_config(RunFolder(folder / "run")).temporal
    assert (temporal.encoder, temporal.position_embedding) == (encoder, "sinusoidal")
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


def test_gradient_checkpointing_makes_the_same_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    use = TemporalClassifier.use_gradient_checkpointing
    monkeypatch.setattr(
        TemporalClassifier, "use_gradient_checkpointing", lambda m: used.append(1) or use(m)
    )
    for name, is_on in (("a", False), ("b", True)):
        values = {**vars(SETTINGS), "gradient_checkpointing": is_on}
        train_temporal(folder / "f", folder / name, TrainTemporalSettings(**values))
    weights = [read_weights(folder / name / "last.safetensors") for name in "ab"]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, msg=key)
    assert used == [1]
    values = {**vars(SETTINGS), "gradient_checkpointing": True}  # may change when a run resumes
    train_temporal(folder / "f", folder / "a", TrainTemporalSettings(**values))


def test_what_a_failed_beginning_left_is_not_used(folder: Path) -> None:
    mixer = ("--backbone", "toy_backbones:mixer", "--weights", "none")
    run_cli(folder, "extract", "m.csv", "other", *mixer, code=1)
    wild = TrainTemporalSettings(**{**vars(SETTINGS), "lr": 1e30, "batch_size": 4})
    with pytest.raises(SettingsError, match="the loss became"):
        train_temporal(folder / "f", folder / "run", wild)
    train_temporal(folder / "other", folder / "run", SETTINGS)
    assert predict(folder / "run", [folder / "0.mp4"]).predictions[0].logits is not None


def test_extracting_with_the_backbone_of_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    console = Console(quiet=True)

    def identity(weights: str, features: str = "new", **changes: Any) -> dict[str, Any]:
        settings = ExtractSettings(weights=weights, store="float32", **changes)
        settings = with_model_settings(settings, console)
        return settle(FeatureFolder(folder / features), settings, console).identity

    monkeypatch.chdir(folder)
    stored = read_config(RunFolder(folder / "run")).identity
    assert identity("run", precision="float32") == {**stored, "precision": "float32"}
    assert identity("run", "f")["weights_digest"] == stored["weights_digest"]
    with pytest.raises(
        SettingsError, match="--backbone resnet18 with --weights run: that model has toy"
    ):
        identity("run", backbone="resnet18")
    shutil.copytree("run", "none")  # a word, and no folder
    assert identity("none", backbone="toy_backbones:mixer")["backbone"] == "toy_backbones:mixer"

    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    network.save_pretrained("saved")
    assert identity("saved")["weights_digest"] == stored["weights_digest"]
    with torch.no_grad():
        network.backbone.scale.mul_(2)
    network.save_pretrained("changed")
    assert identity("changed")["weights_digest"] != stored["weights_digest"]
    with pytest.raises(FeaturesError, match=r"the weights \(--weights\) are others"):
        identity("changed", "f")

    (folder / "run/backbone.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"lacks scale; put its backbone\.safetensors back"):
        identity("run")
    assert not (folder / "new").exists()


def test_a_damaged_config_is_named(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    files = RunFolder(folder / "run")
    good = json.loads(files.config.read_text())
    for changes in (
        {"identity": {}},
        {"identity": []},
        {"class_names": ["up"]},
        {"class_names": [1, 2]},
        {"temporal": {**good["temporal"], "encoder": "bert"}},
        {"temporal": {**good["temporal"], "num_layers": 0}},
        {"version": 99},
    ):
        files.config.write_text(json.dumps({**good, **changes}))
        with pytest.raises(FeaturesError, match=r"config\.json: "):
            predict(files.root, [folder / "0.mp4"])
    for data in (b"\xff\xfe", b"[" * 100_000):
        files.config.write_bytes(data)
        with pytest.raises(FeaturesError, match=r"config\.json: cannot be read"):
            predict(files.root, [folder / "0.mp4"])


def test_faults_of_data_and_settings_have_their_errors(folder: Path) -> None:
    manifest = folder / "m.csv"
    fly = edit(manifest, "v2,2.mp4,up", "v2,2.mp4,fly")
    cases: list[tuple[type[VtnpipeError], str, dict[str, object]]] = [
        (ManifestError, "label 'fly' is none of the model's 2 classes", {"manifest": fly}),
        (ManifestError, "split 'test' has no rows", {"val_split": "test"}),
        (SettingsError, "--heads 3", {"heads": 3}),
        (SettingsError, "--attention-window 5", {"attention_window": 5}),
        (SettingsError, "features of 768 dimensions", {"preset": "vit-b-vtn"}),
        (SettingsError, "--preset 'vtn'", {"preset": "vtn"}),
        (SettingsError, "--dropout 1.5", {"dropout": 1.5}),
        (SettingsError, "--seed -1", {"seed": -1}),
        (SettingsError, "--encoder 'bert': it must be longformer, full,", {"encoder": "bert"}),
        (SettingsError, "--head 'x': it must be mlp or package", {"head": "x"}),
        (ManifestError, "label 'up' is not a number", {"task": "regression"}),
        (
            SettingsError,
            "the encoder 'mean' can't do that",
            {"encoder": "mean", "gradient_checkpointing": True},
        ),
        (SettingsError, "--lr inf", {"lr": math.inf}),
    ]
    for kind, message, changes in cases:
        values: dict[str, Any] = {"layers": 1, "heads": 2, "head_dim": 8, "epochs": 1, **changes}
        with pytest.raises(kind, match=message):
            train_temporal(folder / "f", folder / "run", TrainTemporalSettings(**values))
        assert not (folder / "run").exists()
    only_lost = edit(manifest, "lost,none.mp4,up,val", "lost,none.mp4,rare,train")
    with pytest.raises(ManifestError, match="no video of class 'rare' can be used"):
        train_temporal(folder / "f", folder / "run", TrainTemporalSettings(manifest=only_lost))
    (folder / "run").mkdir()
    (folder / "run/letter.txt").touch()
    with pytest.raises(SettingsError, match="not empty; give a new folder"):
        train_temporal(folder / "f", folder / "run", SETTINGS)

"""`vtnpipe train-temporal`, from extraction to prediction, and its options."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_cli
from stage_two import SETTINGS, SHAPE, SMALL, edit, extract_manifest, write_labelled_clips
from vtnpipe.manifests.errors import (
    ManifestError,
    SettingsError,
    VtnpipeError,
)
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.inference.evaluation import EvaluateSettings
from vtnpipe.pipelines.models.model_folder import read_config
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.predict import PredictSettings, predict
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import RunFolder, read_weights
from vtnpipe.temporal.model import TemporalClassifier


def test_another_image_size_from_extraction_to_prediction(tmp_path: Path) -> None:
    write_labelled_clips(tmp_path)
    own = ("--backbone", "test_vit", "--weights", "none", "--image-size", 96)
    run_cli(tmp_path, "extract", "m.csv", "f", *own, "--precision", "float32", code=1)
    spec = json.loads((tmp_path / "f/extraction.json").read_text())["spec"]
    assert (spec["image_size"], spec["preprocessing"]["input_size"]) == (96, [3, 96, 96])
    ran = run_cli(tmp_path, "extract", "m.csv", "f", *own[:4], code=2)
    assert "image_size is None here and 96 in the folder" in ran.stderr
    run_cli(tmp_path, "train-temporal", "f", "run", *SMALL)
    for arguments in (("0.mp4",), ("v0", "--mode", "features", "--features", "f")):
        assert "%  up" in run_cli(tmp_path, "predict", "run", *arguments).stdout


def test_from_extraction_to_prediction_through_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path
    write_labelled_clips(folder)
    means = ("--backbone", "toy_backbones:block_means", "--weights", "none")
    exact = ("--feature-dtype", "float32", "--precision", "float32")
    run_cli(folder, "extract", "m.csv", "f", *means, *exact, code=1)
    ran = run_cli(folder, "train-temporal", "f", "run", *SMALL)
    assert "8 training and 4 validation videos, 2 classes" in ran.stdout
    assert "split val: of 5 videos, 1 without features" in ran.stdout
    assert "adamw, learning rate 0.0005 (cosine), 2 epochs, batches of 16" in ran.stdout
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
    assert "contains another run: --lr is 0.1 here and 0.0005 there" in ran.stderr

    ran = run_cli(folder, "evaluate", "run", "f", code=1)
    assert "videos: 5 expected, 4 scored, 1 missing, 0 partial  <- not all" in ran.stdout
    record = json.loads((folder / "run/predictions/val.json").read_text())
    with (folder / "run/predictions/val.csv").open() as file:
        lines = list(csv.DictReader(file))
    hits = [line["label"] == line["predicted"] for line in lines]
    assert record["metrics"]["top1"] == pytest.approx(sum(hits) / 4)
    assert sum(map(sum, record["metrics"]["confusion"])) == 4
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


def test_positions_can_be_frame_indices(folder: Path) -> None:
    settings = replace(SETTINGS, positions="frames")
    train_temporal(folder / "f", folder / "run", settings)
    assert read_config(RunFolder(folder / "run")).temporal.position_fps is None
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


def test_mean_pooling(folder: Path) -> None:
    settings = TrainTemporalSettings(encoder="mean", head_dim=8, epochs=1, optimizer="adamw")
    train_temporal(folder / "f", folder / "run", settings)
    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    assert network.config.temporal.encoder == "mean"
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


def test_multi_label_through_the_command_line(folder: Path) -> None:
    manifest = folder / "m.csv"
    text = manifest.read_text().replace(",up,", ",up|low,").replace("v0,0.mp4,up|low", "v0,0.mp4,")
    manifest.write_text(text)
    options = ("--task", "multi-label", "--manifest", "m.csv")
    ran = run_cli(folder, "train-temporal", "f", "run", *SMALL, *options)
    assert "2/2" in ran.stdout
    assert "mAP" in ran.stdout
    ran = run_cli(folder, "evaluate", "run", "f", "--manifest", "m.csv", code=1)
    assert "average precision" in ran.stdout
    record = json.loads((folder / "run/predictions/val.json").read_text())
    assert record["classes"] == ["down", "low", "up"]
    assert record["metrics"]["per_class"].keys() == {"down", "low", "up"}
    with (folder / "run/predictions/val.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"up|low", "down"}
    for row in rows:
        named = {name for name in record["classes"] if float(row[name]) >= 0.5}
        assert set(row["predicted"].split("|")) - {""} == named
    ran = run_cli(folder, "predict", "run", "--mode", "features", "--features", "f", code=1)
    assert "%  low" in ran.stdout


def test_regression_learns_and_predicts_in_the_labels_unit(folder: Path) -> None:
    manifest = folder / "m.csv"
    lines = manifest.read_text().splitlines()
    for number in range(12):  # a clip shows its number by the brightness of its blocks
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
    lines = (folder / "run/metrics.jsonl").read_text().splitlines()
    assert report.best["rmse"] == min(json.loads(line)["rmse"] for line in lines)
    settings = EvaluateSettings(split="train", manifest=str(manifest))
    rmse = evaluate(folder / "run", folder / "f", settings).values["rmse"]
    assert rmse is not None
    assert rmse < 0.8 * spread
    prediction = predict(
        folder / "run", ["v4"], PredictSettings(mode="features", features=str(folder / "f"))
    )
    logits = prediction.predictions[0].logits
    assert logits is not None
    assert 950 < float(logits[0]) < 1160


def test_encoder_and_head_can_be_user_modules(folder: Path) -> None:
    own = ("--encoder", "toy_encoders:recurrent", "--head", "toy_encoders:one_layer")
    ran = run_cli(folder, "train-temporal", "f", "run", *own, "--epochs", 1)
    assert "toy_encoders:recurrent, " in ran.stdout
    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    assert type(network.temporal.encoder).__name__ == "Recurrent"
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


def test_full_attention_with_sinusoidal_positions(folder: Path) -> None:
    settings = replace(SETTINGS, encoder="full", position_embedding="sinusoidal")
    train_temporal(folder / "f", folder / "run", settings)
    temporal = read_config(RunFolder(folder / "run")).temporal
    assert (temporal.encoder, temporal.position_embedding) == ("full", "sinusoidal")
    assert evaluate(folder / "run", folder / "f").counts.scored == 4


def test_gradient_checkpointing_gives_the_same_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    use = TemporalClassifier.use_gradient_checkpointing
    monkeypatch.setattr(
        TemporalClassifier, "use_gradient_checkpointing", lambda m: used.append(1) or use(m)
    )
    for name, is_on in (("a", False), ("b", True)):
        settings = replace(SETTINGS, gradient_checkpointing=is_on)
        train_temporal(folder / "f", folder / name, settings)
    weights = [read_weights(folder / name / "last.safetensors") for name in "ab"]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, msg=key)
    assert used == [1]
    settings = replace(SETTINGS, gradient_checkpointing=True)  # may change when a run resumes
    train_temporal(folder / "f", folder / "a", settings)


def test_a_backbone_left_by_a_failed_start_is_not_used(folder: Path) -> None:
    extract_manifest(folder / "m.csv", folder / "other", "toy_backbones:mixer")
    wild = replace(SETTINGS, lr=1e30, batch_size=4)
    with pytest.raises(SettingsError, match="the loss became"):
        train_temporal(folder / "f", folder / "run", wild)
    train_temporal(folder / "other", folder / "run", SETTINGS)
    assert predict(folder / "run", [folder / "0.mp4"]).predictions[0].logits is not None


def test_invalid_data_and_settings_raise_and_leave_no_folder(folder: Path) -> None:
    manifest = folder / "m.csv"
    fly = edit(manifest, "v2,2.mp4,up", "v2,2.mp4,fly")
    cases: list[tuple[type[VtnpipeError], str, dict[str, object]]] = [
        (ManifestError, "label 'fly' is not one of the model's 2 classes", {"manifest": fly}),
        (ManifestError, "split 'test' has no rows", {"val_split": "test"}),
        (SettingsError, "--heads 3", {"heads": 3}),
        (SettingsError, "--attention-window 5", {"attention_window": 5}),
        (SettingsError, "features of 768 dimensions", {"preset": "vit-b-vtn"}),
        (SettingsError, "--preset 'vtn'", {"preset": "vtn"}),
        (SettingsError, "--dropout 1.5", {"dropout": 1.5}),
        (SettingsError, "--seed -1", {"seed": -1}),
        (SettingsError, "--encoder 'bert': it must be longformer, full,", {"encoder": "bert"}),
        (SettingsError, "--head 'x': it must be mlp or package", {"head": "x"}),
        (ManifestError, "label 'up' is not a finite number", {"task": "regression"}),
        (
            SettingsError,
            "gradient-checkpointing.*'mean'",
            {"encoder": "mean", "gradient_checkpointing": True},
        ),
        (SettingsError, "--lr inf", {"lr": math.inf}),
    ]
    for kind, message, changes in cases:
        values: dict[str, Any] = {**SHAPE, "epochs": 1, **changes}
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

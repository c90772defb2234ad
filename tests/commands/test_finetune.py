"""`vtnpipe finetune`: end to end, resumed, in two processes; what it trains, and on which clips."""

import csv
import io
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import cli_environment, run_cli, signal_training
from numbered_videos import write_video
from rich.console import Console
from stage_two import SHAPE, lose_frames_of_clips, write_numbered_rows
from vtnpipe.extract.augmentation import Augmentation
from vtnpipe.extract.create_backbone import build_backbone, create_module, default_preprocessing
from vtnpipe.manifests.errors import BackboneError, ManifestError, SettingsError
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.finetune import _augmentation, finetune
from vtnpipe.pipelines.inference import clip_reader
from vtnpipe.pipelines.inference.clip_reader import VideoClipReader
from vtnpipe.pipelines.inference.evaluation import EvaluateSettings
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.finetune_settings import FinetuneSettings
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import read_weights

MIXER = "toy_backbones:mixer"
SETTINGS = FinetuneSettings(
    backbone=MIXER, weights="none", epochs=2, batch_size=3, dropout=0.0, head_dropout=0.0,
    clip_frames=4, clip_seconds=0.3, num_workers=0, **SHAPE,
)  # fmt: skip
OPTIONS = (
    f"--layers 1 --heads 2 --intermediate 16 --head-dim 8 --backbone {MIXER} --weights none "
    "--epochs 4 --batch-size 4 --dropout 0 --head-dropout 0 --lr 0.05 --val-clips 2 "
    "--clip-frames 5 --clip-seconds 0.4 --time-jitter 0.5 --num-workers 1"
).split()


@pytest.fixture(autouse=True)
def _one_index_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index videos in one process, as starting a decoder process takes a third of a second."""
    monkeypatch.setattr(clip_reader, "PROCESSES_PER_CPU", 1)
    monkeypatch.setattr(clip_reader, "num_cpus", lambda: 1)


@pytest.fixture
def rows(tmp_path: Path) -> list[VideoRow]:
    """Ten numbered videos of two classes, seven of them for training."""
    return write_numbered_rows(tmp_path)


@pytest.fixture
def manifest(tmp_path: Path, rows: list[VideoRow]) -> Path:
    write_manifest(rows, tmp_path / "m.csv")
    return tmp_path / "m.csv"


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def gapped(tmp_path: Path, rows: list[VideoRow]) -> Path:
    """The folder of a manifest `m.csv` that also names a missing training video."""
    gone = VideoRow(video_id="gone", path=str(tmp_path / "gone.mp4"), label="a", split="train")
    write_manifest([*rows, gone], tmp_path / "m.csv")
    return tmp_path


@pytest.mark.usefixtures("gapped")
def test_through_the_command_line_with_a_missing_video(tmp_path: Path) -> None:
    ran = run_cli(tmp_path, "finetune", "m.csv", "run", *OPTIONS, code=1)
    assert "failed gone: missing" in ran.stdout
    assert "split train: of 8 videos, 1 without frames" in ran.stdout
    assert "random crops, half of them mirrored" in ran.stdout
    with (tmp_path / "run/failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert (failure["video_id"], failure["status"], failure["reason"]) == (
        *("gone", "failed", "missing"),
    )
    assert [line["epoch"] for line in _lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert all(line["lost"] == [] for line in _lines(tmp_path / "run"))
    ran = run_cli(tmp_path, "evaluate", "run", "m.csv")
    assert "videos: 3 expected, 3 scored, 0 missing, 0 partial" in ran.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("gapped")
def test_killed_and_signalled_runs_and_two_processes_give_the_same_weights(tmp_path: Path) -> None:
    run_cli(tmp_path, "finetune", "m.csv", "whole", *OPTIONS, code=1)
    command = ("finetune", "m.csv", "run", *OPTIONS)
    assert signal_training(tmp_path, command, signal.SIGKILL, 1)[0] == -signal.SIGKILL
    code, errors = signal_training(tmp_path, command, signal.SIGUSR1, 2)
    assert code == 3, errors
    assert "saved a checkpoint; the same command resumes" in errors
    run_cli(tmp_path, "finetune", "m.csv", "run", *OPTIONS, code=1)
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 -m vtnpipe finetune m.csv"
    two_processes = subprocess.run(
        [sys.executable, *launch.split(), "two", *OPTIONS, "--device", "cpu"],
        cwd=tmp_path,
        env=cli_environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,  # 1, as a video is missing
    )
    assert "x 2 processes" in two_processes.stdout, two_processes.stderr
    one, two = (read_weights(tmp_path / name / "last.safetensors") for name in ("whole", "two"))
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=1e-5, rtol=1e-4, msg=key)
    for first, second in zip(_lines(tmp_path / "whole"), _lines(tmp_path / "two"), strict=True):
        assert first["top1"] == second["top1"]
        assert first["lost"] == second["lost"] == []
        assert abs(first["train_loss"] - second["train_loss"]) < 1e-5


@pytest.mark.slow
def test_features_extracted_with_a_finetuned_model_score_like_its_videos(
    tmp_path: Path, rows: list[VideoRow], manifest: Path
) -> None:
    settings = replace(SETTINGS, epochs=3, optimizer="adamw", lr=1e-2, val_clips=1)
    finetune(manifest, tmp_path / "run", settings)
    initial = safetensors.torch.load(build_backbone(MIXER, "none").weights)
    trained = read_weights(tmp_path / "run/model.safetensors")
    assert not torch.equal(trained["backbone.head.weight"], initial["head.weight"])

    store = ("--feature-dtype", "float32", "--precision", "float32")
    run_cli(tmp_path, "extract", "m.csv", "f", "--weights", "run", *store)
    from_features = evaluate(tmp_path / "run", tmp_path / "f")
    with np.load(tmp_path / "run/predictions/val.npz") as arrays:
        expected = arrays["logits"]
    ran = run_cli(tmp_path, "evaluate", "run", "m.csv")
    assert "videos: 3 expected, 3 scored, 0 missing, 0 partial" in ran.stdout
    for mode in ("chunked", "end-to-end"):
        if mode == "end-to-end":
            evaluate(tmp_path / "run", manifest, EvaluateSettings(mode=mode))
        with np.load(tmp_path / "run/predictions/val.npz") as arrays:
            np.testing.assert_allclose(arrays["logits"], expected, atol=1e-4)
    clips = EvaluateSettings(clips=3, clip_frames=4, clip_seconds=0.3, shuffle_frames=True)
    found = []
    for source in ("f", "m.csv"):
        evaluate(tmp_path / "run", tmp_path / source, clips)
        with np.load(tmp_path / "run/predictions/val+3clips+shuffled.npz") as arrays:
            found.append(arrays["logits"])
    np.testing.assert_allclose(*found, atol=1e-4)
    assert from_features.counts.scored == 3

    stage_two = TrainTemporalSettings(epochs=1, batch_size=3, **SHAPE)
    train_temporal(tmp_path / "f", tmp_path / "two", stage_two)
    again = replace(FinetuneSettings(from_=str(tmp_path / "two")), epochs=1, batch_size=3, lr=0.0)
    finetune(manifest, tmp_path / "again", again)
    two, last = (read_weights(tmp_path / name / "model.safetensors") for name in ("two", "again"))
    del two["temporal.shortcut.blend"]  # finetuning begins with all of the learned logits
    assert all(torch.equal(last[key], tensor) for key, tensor in two.items())


def test_clips_that_cannot_be_decoded_are_reported(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_frames_of_clips(monkeypatch)
    report = finetune(manifest, tmp_path / "run", SETTINGS)
    assert report.exit_code == 1
    lost = report.training.last["lost"]
    assert [one.split(":")[0] for one in lost if one.startswith("v1")] == ["v1"]
    assert "v2: damaged: 2.x: broken" in lost


def test_a_lost_clip_has_no_gradient(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still counts in the mean, so that processes need not agree on what is lost."""
    write_manifest([rows[0], rows[1], rows[7]], tmp_path / "m.csv")
    settings = replace(SETTINGS, epochs=1, batch_size=2, lr=0.1, weight_decay=0.0, augment="no")
    read = VideoClipReader.read
    weights = {}
    for name, change in {
        "lost": lambda batch: batch._replace(is_lost=torch.ones_like(batch.is_lost)),
        "nothing": lambda batch: batch,
    }.items():
        monkeypatch.setattr(
            VideoClipReader, "read", lambda self, *clips, c=change: map(c, read(self, *clips))
        )
        finetune(tmp_path / "m.csv", tmp_path / name, settings)
        weights[name] = read_weights(tmp_path / name / "last.safetensors")
    finetune(tmp_path / "m.csv", tmp_path / "begun", replace(settings, lr=0.0))
    begun = read_weights(tmp_path / "begun/last.safetensors")
    assert all(torch.equal(weights["lost"][key], tensor) for key, tensor in begun.items())
    assert not all(torch.equal(weights["nothing"][key], tensor) for key, tensor in begun.items())


def test_only_the_last_blocks_change(tmp_path: Path, rows: list[VideoRow], manifest: Path) -> None:
    settings = replace(
        SETTINGS, backbone="test_vit", epochs=1, val_clips=1, train_blocks=2, layer_decay=0.5
    )
    finetune(manifest, tmp_path / "run", settings)
    frozen = replace(settings, train_blocks=0, gradient_checkpointing=True)
    finetune(manifest, tmp_path / "frozen", frozen)
    one, other = (read_weights(tmp_path / n / "last.safetensors") for n in ("run", "frozen"))
    changed = {key for key, tensor in one.items() if not torch.equal(other[key], tensor)}
    blocks = {key.split(".")[2] for key in changed if key.startswith("backbone.blocks")}
    assert blocks == {"4", "5"}
    assert not any(key.startswith(("backbone.patch", "backbone.pos")) for key in changed)
    assert any(key.startswith("backbone.norm") for key in changed)


def test_gradient_checkpointing_and_accumulation_give_the_same_weights(
    tmp_path: Path, manifest: Path
) -> None:
    settings = replace(SETTINGS, backbone="test_vit", epochs=1, val_clips=1, batch_size=4)
    for name, changes in {
        "plain": {},
        "less memory": {"gradient_checkpointing": True, "gradient_accumulation": 3},
    }.items():
        finetune(manifest, tmp_path / name, replace(settings, **changes))
    one, other = (
        read_weights(tmp_path / name / "last.safetensors") for name in ("plain", "less memory")
    )
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize(
    ("labels", "flip", "expected"),
    [
        (("push Left", "pull"), "auto", False),
        (("leftover", "pull"), "auto", True),
        (("push left", "pull"), "yes", True),
        (("a", "b"), "no", False),
    ],
)
def test_class_names_can_forbid_mirroring(
    labels: tuple[str, str], flip: Any, expected: bool
) -> None:
    preprocessing = default_preprocessing(create_module(MIXER, pretrained=False))
    augmentation = _augmentation(replace(SETTINGS, flip=flip), preprocessing, [*labels])
    assert augmentation is not None
    assert augmentation.flip is expected


def test_training_clips_are_augmented_as_described(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Augmentation] = []

    def note(self: Augmentation, images: torch.Tensor, seed: int) -> torch.Tensor:
        used.append(self)
        return torch.zeros(len(images), 3, *self.size, dtype=torch.uint8)

    monkeypatch.setattr(Augmentation, "__call__", note)
    named = [replace(row, label=("push left", "pull")[n % 2]) for n, row in enumerate(rows)]
    write_manifest(named, tmp_path / "m.csv")
    settings = replace(SETTINGS, epochs=1, val_clips=1, short_side_max=100)
    console = Console(file=io.StringIO(), width=300)
    finetune(tmp_path / "m.csv", tmp_path / "run", settings, console=console)
    assert {(one.flip, one.short_sides) for one in used} == {(False, (73, 100))}
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "short side 73 to 100, random crops, none mirrored" in printed


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (SettingsError, "--short-side-min 60", {"short_side_min": 60}),
        (
            SettingsError,
            "--backbone resnet50: the backbone is that of --from",
            {"from_": "run"},
        ),
        (SettingsError, "--new-head with --from none", {"new_head": True}),
        (BackboneError, "has no group_matcher", {"train_blocks": 1}),
        (BackboneError, "has no group_matcher", {"layer_decay": 0.5}),
        (BackboneError, "has no set_grad_checkpointing", {"gradient_checkpointing": True}),
        (SettingsError, "--layer-decay 2.0", {"layer_decay": 2.0}),
        (ManifestError, "split 'none' has no rows", {"val_split": "none"}),
    ],
)
def test_invalid_settings_raise(
    tmp_path: Path, manifest: Path, error: type[Exception], message: str, changes: dict[str, Any]
) -> None:
    def run() -> None:
        settings = {**vars(SETTINGS), **changes}
        if "from_" in changes:
            settings["backbone"] = "resnet50"
        finetune(manifest, tmp_path / "run", FinetuneSettings(**settings))

    with pytest.raises(error, match=message):
        run()
    assert not (tmp_path / "run/model.safetensors").exists()


def test_a_run_with_a_changed_video_is_refused(
    tmp_path: Path, rows: list[VideoRow], manifest: Path
) -> None:
    settings = replace(SETTINGS, epochs=1, val_clips=1)
    finetune(manifest, tmp_path / "run", settings)
    begun = (tmp_path / "run/index.safetensors").stat().st_mtime_ns
    finetune(manifest, tmp_path / "run", settings)
    assert (tmp_path / "run/index.safetensors").stat().st_mtime_ns == begun
    write_video(Path(rows[0].path), 13)
    with pytest.raises(SettingsError, match="contains another run: data is"):
        finetune(manifest, tmp_path / "run", settings)

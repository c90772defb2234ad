"""`vtnpipe finetune`: end to end through the command line, killed, resumed, by two processes; and
what it learns, from what, on which frames.
"""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import cli_environment, run_cli
from feature_folders import extract_rows, make_folder
from numbered_videos import write_video
from rich.console import Console
from vtnpipe.extract import requests
from vtnpipe.extract.augmentation import Augmentation
from vtnpipe.extract.create_backbone import create_module, default_preprocessing
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.sampling import EVERY_FRAME, Sampling
from vtnpipe.manifests.errors import BackboneError, ManifestError, SettingsError
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.evaluate import EvaluateSettings, evaluate
from vtnpipe.pipelines.finetune import FinetuneSettings, finetune
from vtnpipe.pipelines.inference.clip_reader import IndexedVideos, VideoReader, index_videos
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings, train_temporal
from vtnpipe.temporal.batch import Batch
from vtnpipe.temporal.checkpoint import read_weights
from vtnpipe.temporal.clips import Clip, ClipSampling
from vtnpipe.temporal.dataset import ClipDataset, RandomClips
from vtnpipe.temporal.feature_reader import FeatureReader

MIXER = "toy_backbones:mixer"
SHAPE: dict[str, Any] = {"layers": 1, "heads": 2, "intermediate": 16, "head_dim": 8}
SETTINGS = FinetuneSettings(
    backbone=MIXER, weights="none", epochs=2, batch_size=3, dropout=0.0, head_dropout=0.0, **SHAPE
)
OPTIONS = f"--layers 1 --heads 2 --intermediate 16 --head-dim 8 --backbone {MIXER} --weights none"
OPTIONS += " --epochs 4 --batch-size 4 --dropout 0 --head-dropout 0 --lr 0.05 --val-clips 2"
OPTIONS += " --clip-frames 5 --clip-seconds 0.4 --time-jitter 0.5 --num_workers 1"
TIMES = ("videos_per_second", "waiting")


@pytest.fixture
def rows(tmp_path: Path) -> list[VideoRow]:
    """Ten numbered videos of two classes, seven to learn from."""
    found = []
    for number in range(10):
        suffix = ("mp4", "mkv", "avi")[number % 3]
        codec = "mpeg4" if suffix == "avi" else "libx264"
        path = tmp_path / f"{number}.{suffix}"
        write_video(path, 12 + 3 * number, codec=codec, first=900 * number)
        split = "train" if number < 7 else "val"
        label = "ab"[number % 2]
        found.append(VideoRow(video_id=f"v{number}", path=str(path), label=label, split=split))
    return found


@pytest.fixture
def manifest(tmp_path: Path, rows: list[VideoRow]) -> Path:
    write_manifest(rows, tmp_path / "m.csv")
    return tmp_path / "m.csv"


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _signalled(folder: Path, number: signal.Signals, after_lines: int) -> tuple[int, str]:
    """Starts a run, sends it a signal when so many epochs are done; its exit code and errors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vtnpipe", "finetune", "m.csv", "run", *OPTIONS.split()],
        cwd=folder,
        env=cli_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "run/metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= after_lines:
            process.send_signal(number)
            break
        time.sleep(0.003)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_killed_resumed_and_by_two_processes_through_the_command_line(
    tmp_path: Path, rows: list[VideoRow]
) -> None:
    gone = VideoRow(video_id="gone", path=str(tmp_path / "gone.mp4"), label="a", split="train")
    write_manifest([*rows, gone], tmp_path / "m.csv")
    ran = run_cli(tmp_path, "finetune", "m.csv", "whole", *OPTIONS.split(), code=1)
    assert "failed gone: missing" in ran.stdout
    assert "split train: of 8 videos, 1 without frames" in ran.stdout
    assert "random crops, half of them mirrored" in ran.stdout
    with (tmp_path / "whole/failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert (failure["video_id"], failure["status"], failure["reason"]) == (
        *("gone", "failed", "missing"),
    )

    assert _signalled(tmp_path, signal.SIGKILL, 1)[0] == -signal.SIGKILL
    code, errors = _signalled(tmp_path, signal.SIGUSR1, 2)
    assert code == 3, errors
    assert "which a checkpoint holds; the same command resumes" in errors
    run_cli(tmp_path, "finetune", "m.csv", "run", *OPTIONS.split(), code=1)
    for name in ("model.safetensors", "last.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 -m vtnpipe finetune m.csv"
    two_processes = subprocess.run(
        [sys.executable, *launch.split(), "two", *OPTIONS.split(), "--device", "cpu"],
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


def test_the_loop_closes(tmp_path: Path, rows: list[VideoRow], manifest: Path) -> None:
    """Finetuned, then extracted again: the model is of one mind in all three modes."""
    settings = replace(SETTINGS, epochs=3, optimizer="adamw", lr=1e-2, val_clips=1)
    finetune(manifest, tmp_path / "run", settings)
    begun = finetune(manifest, tmp_path / "begun", replace(settings, epochs=1, lr=0.0))
    assert begun.exit_code == 0
    one, other = (read_weights(tmp_path / name / "model.safetensors") for name in ("run", "begun"))
    assert not torch.equal(one["backbone.head.weight"], other["backbone.head.weight"])

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
    assert all(torch.equal(last[key], tensor) for key, tensor in two.items())


def _index(tmp_path: Path, rows: list[VideoRow], sampling: Sampling = EVERY_FRAME) -> IndexedVideos:
    index = index_videos(tmp_path / "index.safetensors", rows, Console(quiet=True))
    by_id = {row.video_id: row for row in rows}
    return IndexedVideos(rows=by_id, index=index, sampling=sampling)


@pytest.mark.parametrize(("store", "tolerance"), [("float32", 1e-4), ("float16", 1e-3)])
@pytest.mark.parametrize("backbone", [MIXER, "test_vit"])
def test_before_the_first_step_logits_are_those_of_stage_two(
    tmp_path: Path, rows: list[VideoRow], backbone: str, store: str, tolerance: float
) -> None:
    rows[2] = replace(rows[2], start=0.3, end=0.62)
    folder = make_folder(tmp_path / "f", backbone, store=store, frame_stride=2)
    extract_rows(folder, rows)
    recipe: dict[str, Any] = {"epochs": 4, "batch_size": 3, "optimizer": "adamw", "lr": 0.01}
    train_temporal(folder.root, tmp_path / "run", TrainTemporalSettings(**recipe, **SHAPE))
    network = VideoTransformerNetwork.from_pretrained(tmp_path / "run")
    sampling = Sampling.from_identity(network.config.identity)
    clips = RandomClips(ClipSampling(num_frames=5, seconds=0.5, jitter=1.0))
    batches: list[Batch] = []
    for reader in (
        FeatureReader(open_features(folder.root)),
        VideoReader(_index(tmp_path, rows, sampling), network.config.preprocessing, None),
    ):
        dataset = ClipDataset(
            reader, [row.video_id for row in rows], torch.zeros(len(rows)), clips, position_fps=25
        )
        batches.append(dataset.batch([(number, 7) for number in range(len(rows))]))
    stored, decoded = batches
    assert decoded.inputs.dtype == torch.uint8
    assert torch.equal(stored.positions, decoded.positions)
    assert torch.equal(stored.mask, decoded.mask)
    with torch.inference_mode():
        expected = network.temporal(stored.inputs, stored.positions, stored.mask)
        found = network(decoded.inputs, decoded.positions, decoded.mask)
    assert float(expected.std(0).max()) > 1e-3
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_frames_that_can_not_be_decoded_are_left_out_and_said(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessing = default_preprocessing(create_module(MIXER, pretrained=False))
    reader = VideoReader(_index(tmp_path, rows), preprocessing, None)
    whole = reader.read([Clip(f"v{n}", np.arange(4), 0) for n in range(3)])
    assert whole.is_lost is not None
    assert not whole.is_lost.any()
    assert whole.faults == ()

    run = DecoderPool.run

    def losing(self: DecoderPool, wanted: Any) -> Any:
        """Loses two frames of v1, and all of v2."""
        for number, event in run(self, wanted):
            is_decode = isinstance(wanted[number], requests.Decode)
            name = Path(wanted[number].path).stem if is_decode else ""
            if isinstance(event, requests.Chunk) and name in ("1", "2"):
                if name == "1":
                    yield (
                        number,
                        event._replace(images=event.images[2:], frame_index=event.frame_index[2:]),
                    )
            elif isinstance(event, Outcome) and name in ("1", "2"):
                status: Any = "partial" if name == "1" else "failed"
                yield number, Outcome(status=status, reason="damaged", message=f"{name}.x: broken")
            else:
                yield number, event

    monkeypatch.setattr(DecoderPool, "run", losing)
    dataset = ClipDataset(
        reader,
        [row.video_id for row in rows],
        torch.zeros(10),
        RandomClips(ClipSampling(num_frames=4)),
        position_fps=25,
    )
    batch = dataset.batch([(0, 0), (1, 0), (2, 0)])
    assert batch.is_read.tolist() == [True, True, False]
    assert batch.mask.tolist() == [[True] * 4, [False, False, True, True], [True] * 4]
    assert not batch.inputs[2].any()
    assert batch.faults == ("v1: damaged: 1.x: broken", "v2: damaged: 2.x: broken")

    write_manifest(rows, tmp_path / "m.csv")
    report = finetune(tmp_path / "m.csv", tmp_path / "run", replace(SETTINGS, num_workers=0))
    assert report.exit_code == 1
    lost = report.training.last["lost"]
    assert [one.split(":")[0] for one in lost if one.startswith("v1")] == ["v1"]
    assert "v2: damaged: 2.x: broken" in lost


def test_a_clip_that_is_lost_teaches_nothing(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weight in the mean stays, so that processes need not agree on it; its gradient is 0."""
    write_manifest([rows[0], rows[1], rows[7]], tmp_path / "m.csv")
    settings = replace(SETTINGS, epochs=1, batch_size=2, lr=0.1, num_workers=0, augment="no")
    read = VideoReader.read
    weights = {}
    for name, change in {
        "lost": lambda batch: batch._replace(is_lost=torch.ones_like(batch.is_lost)),
        "nothing": lambda batch: batch,
    }.items():
        monkeypatch.setattr(VideoReader, "read", lambda self, clips, c=change: c(read(self, clips)))
        finetune(tmp_path / "m.csv", tmp_path / name, settings)
        weights[name] = read_weights(tmp_path / name / "last.safetensors")
    finetune(tmp_path / "m.csv", tmp_path / "begun", replace(settings, lr=0.0))
    begun = read_weights(tmp_path / "begun/last.safetensors")
    assert all(torch.equal(weights["lost"][key], tensor) for key, tensor in begun.items())
    assert not all(torch.equal(weights["nothing"][key], tensor) for key, tensor in begun.items())


def test_part_of_the_backbone_learns_and_the_rest_stays(
    tmp_path: Path, rows: list[VideoRow], manifest: Path
) -> None:
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

    network = VideoTransformerNetwork.from_pretrained(tmp_path / "run")
    scales = network.lr_scales(0.5)
    assert scales["backbone.blocks.5.mlp.fc1.weight"] == 0.5
    assert scales["backbone.norm.weight"] == 0.5
    assert scales["backbone.blocks.0.mlp.fc1.weight"] == 0.5**6
    assert scales["backbone.pos_embed"] == 0.5**7
    with pytest.raises(BackboneError, match="--train-blocks 7: test_vit has 6 blocks; give fewer"):
        network.unfreeze(7)


def test_what_is_frozen_never_goes_to_training_mode(tmp_path: Path, manifest: Path) -> None:
    settings = replace(SETTINGS, backbone="test_resnet", epochs=1, val_clips=1)
    finetune(manifest, tmp_path / "run", settings)
    network = VideoTransformerNetwork.from_pretrained(tmp_path / "run")
    network.backbone.layer1.drop = torch.nn.Dropout(0.5)
    network.backbone.layer4.drop = torch.nn.Dropout(0.5)
    network.train()
    assert not any(module.training for module in network.backbone.modules())
    assert network.temporal.training
    network.unfreeze(1)
    network.train()
    assert not network.backbone.layer1.drop.training
    assert network.backbone.layer4.training
    assert network.backbone.layer4.drop.training
    norms = [m for m in network.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert sum(norm.weight.requires_grad for norm in norms) > 0
    network.eval()
    assert not any(module.training for module in network.modules())


def test_gradient_checkpointing_and_parts_of_a_batch_make_the_same_weights(
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


def test_a_model_of_other_classes_gets_a_new_head(tmp_path: Path, rows: list[VideoRow]) -> None:
    write_manifest(rows, tmp_path / "m.csv")
    finetune(tmp_path / "m.csv", tmp_path / "ab", replace(SETTINGS, epochs=1))
    others = [replace(row, label="xyz"[n % 3]) for n, row in enumerate(rows)]
    write_manifest(others, tmp_path / "xyz.csv")
    settings = FinetuneSettings(from_=str(tmp_path / "ab"), epochs=1, batch_size=3, lr=0.0)
    with pytest.raises(
        ManifestError, match=r"label 'x' is none of the model's 2 classes.*new-head"
    ):
        finetune(tmp_path / "xyz.csv", tmp_path / "run", settings)
    finetune(tmp_path / "xyz.csv", tmp_path / "run", replace(settings, new_head=True))
    network = VideoTransformerNetwork.from_pretrained(tmp_path / "run")
    assert network.config.class_names == ["x", "y", "z"]
    one, other = (read_weights(tmp_path / n / "model.safetensors") for n in ("ab", "run"))
    kept = {key for key, tensor in one.items() if torch.equal(other[key], tensor)}
    assert {key for key in one if "head" not in key} <= kept | {"backbone.head.weight"}
    assert other["temporal.head.4.weight"].shape == (3, 8)


def test_labels_may_forbid_mirroring(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []

    def note(self: Augmentation, images: torch.Tensor, seed: int) -> torch.Tensor:
        made.append(self.flip)
        return torch.zeros(len(images), 3, *self.size, dtype=torch.uint8)

    monkeypatch.setattr(Augmentation, "__call__", note)
    for number, (labels, flip, expected) in enumerate(
        (
            (("push Left", "pull"), "auto", False),
            (("leftover", "pull"), "auto", True),
            (("push left", "pull"), "yes", True),
            (("a", "b"), "no", False),
        )
    ):
        named = [replace(row, label=labels[n % 2]) for n, row in enumerate(rows)]
        write_manifest(named, tmp_path / "m.csv")
        settings = replace(SETTINGS, epochs=1, val_clips=1, num_workers=0, flip=flip)
        finetune(tmp_path / "m.csv", tmp_path / str(number), settings)
        assert set(made) == {expected}
        made.clear()


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
def test_each_fault_has_its_error(
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


def test_a_changed_video_is_another_run(
    tmp_path: Path, rows: list[VideoRow], manifest: Path
) -> None:
    settings = replace(SETTINGS, epochs=1, val_clips=1)
    finetune(manifest, tmp_path / "run", settings)
    begun = (tmp_path / "run/index.safetensors").stat().st_mtime_ns
    finetune(manifest, tmp_path / "run", settings)
    assert (tmp_path / "run/index.safetensors").stat().st_mtime_ns == begun
    write_video(Path(rows[0].path), 13)
    with pytest.raises(SettingsError, match="holds another run: data is"):
        finetune(manifest, tmp_path / "run", settings)

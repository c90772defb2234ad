"""Real clips, each odd in its own way; skipped where they are not on the machine."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from command_line import Vtnpipe
from PIL import Image
from read_videos import read_video
from timm.data import create_transform, resolve_model_data_config
from vtnpipe.extract.decode.frames import Frame, Outcome
from vtnpipe.extract.weights_file import load_weights_file
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.feature_store import open_features

pytestmark = pytest.mark.shared

MAIN = {
    "ggsy": ("v_GGSY1Qvo990.mp4", 355),
    "znv": ("v_ZNVhz7ctTq0.mp4", 420),
    "pancake": ("flipping_a_pancake.mkv", 310),
    "nasa": ("nasa_13013.mp4", 390),
    "corrupted": ("corrupted.mp4", 49),
}
# Concealed errors in every picture but one: all frames are there, yet not as they were filmed.
CONCEALED = {"oh_Error_I_P.264"}


def _read(path: Path, **options: Any) -> tuple[list[Frame], Outcome | VideoError]:
    """All frames of a file and how it ended; an error leaves no frames."""
    try:
        return read_video(path, **options)
    except VideoError as error:
        return [], error


def _hard(folder: Path) -> list[dict[str, str]]:
    with (folder / "hard/NOTES.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.slow
def test_the_main_job(tmp_path: Path, shared_videos: Path, vtnpipe: Vtnpipe) -> None:
    rows = [f"{name},{shared_videos / path},x,train\n" for name, (path, _) in MAIN.items()]
    (tmp_path / "m.csv").write_text("video_id,path,label,split\n" + "".join(rows))
    command = ("extract", "m.csv", "f", "--backbone", "vit_tiny_patch16_224", "--weights", "none")
    ran = vtnpipe(*command, "--precision", "float32", code=1)
    assert "partial corrupted: damaged: " in ran.stdout
    store = open_features(tmp_path / "f")
    assert {name: len(store[name].features) for name in store} == {
        name: count for name, (_, count) in MAIN.items()
    }
    assert (store["corrupted"].status, store["corrupted"].num_lost_frames) == ("partial", 1)
    assert store["ggsy"].fps == pytest.approx(19.62, abs=0.01)
    again = vtnpipe(*command, code=1)
    assert "nothing to do" in again.stdout

    # Every fifth frame of one clip against the plainest way: PIL, float32, frame by frame.
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    load_weights_file(model, tmp_path / "f/backbone.safetensors")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    frames, _ = _read(shared_videos / MAIN["ggsy"][0], decoder="pyav")
    with torch.inference_mode():
        plain = torch.cat([model(transform(Image.fromarray(f.image))[None]) for f in frames[::5]])
    stored = torch.from_numpy(store["ggsy"].features[::5].astype(np.float32))
    assert torch.cosine_similarity(stored, plain).min() >= 0.9999


@pytest.mark.slow
def test_hard_files_give_their_counts_and_status(shared_videos: Path) -> None:
    for note in _hard(shared_videos):
        name = note["file"]
        frames, outcome = _read(shared_videos / "hard" / name)
        num_decodable = int(note["frames PyAV gives packet by packet, errors skipped"])
        num_errors = int(note["packets in error"])
        assert len(frames) == num_decodable, name
        if num_decodable == 0:
            assert isinstance(outcome, VideoError)
            assert outcome.reason == "truncated"  # a header alone
            continue
        assert isinstance(outcome, Outcome)
        is_whole = num_errors == 0 and name not in CONCEALED
        assert outcome.status == ("ok" if is_whole else "partial"), name
        assert outcome.num_lost_frames == num_errors, name
        times = [frame.time for frame in sorted(frames, key=lambda f: f.frame_index)]
        assert (np.diff(times) > 0).all(), name


def test_rotated_clips_come_out_upright(shared_videos: Path) -> None:
    upright = {"video_90.mov": (568, 320), "video_180.mov": (320, 568), "video_270.mov": (568, 320)}
    for name, shape in upright.items():
        frames, _ = _read(shared_videos / name)
        assert [frame.image.shape[:2] for frame in frames] == [shape] * 3


@pytest.mark.slow
def test_two_readings_and_two_decoders_agree(shared_videos: Path) -> None:
    paths = [
        path for path in sorted(shared_videos.rglob("*")) if path.suffix not in (".md", ".tsv")
    ]
    num_compared = 0
    for path in (path for path in paths if path.is_file()):
        frames, outcome = _read(path)
        again, outcome_again = _read(path)
        assert str(outcome) == str(outcome_again)
        assert (np.diff([frame.time for frame in frames]) > 0).all(), path
        others = [again]
        by_decord, with_decord = _read(path, decoder="decord")
        if isinstance(with_decord, Outcome):
            num_compared += 1
            others.append(by_decord)
        for other in others:
            assert len(frames) == len(other)
            for one, two in zip(frames, other, strict=True):
                assert (one.frame_index, one.time) == (two.frame_index, two.time)
                np.testing.assert_array_equal(one.image, two.image)
    assert num_compared >= 20


@pytest.mark.slow
def test_the_whole_way_on_real_labelled_clips(
    tmp_path: Path, shared_videos: Path, vtnpipe: Vtnpipe
) -> None:
    vtnpipe("manifest", "build", shared_videos / "surveillance", "-o", "m.csv")
    shares = ("--train", 0.5, "--val", 0.25, "--test", 0.25)
    vtnpipe("manifest", "split", "m.csv", "-o", "m.csv", *shares)
    exact = ("--precision", "float32", "--feature-dtype", "float32")
    vtnpipe("extract", "m.csv", "f", "--backbone", "test_vit", "--weights", "none", *exact)
    small = ("--layers", 1, "--heads", 4, "--epochs", 3)
    ran = vtnpipe("train-temporal", "f", "run", *small)
    assert "12 training and 6 validation videos, 2 classes" in ran.stdout
    ran = vtnpipe("evaluate", "run", "f", "--split", "test")
    assert "6 expected, 6 scored, 0 missing, 0 partial" in ran.stdout

    name = "fight/fi010.mp4"
    clip = shared_videos / "surveillance" / name
    tables = []
    for mode, arguments in {
        "end-to-end": (clip,),
        "chunked": (clip, "--chunk-frames", 13),
        "features": (name, "--features", "f"),
    }.items():
        vtnpipe("predict", "run", *arguments, "--mode", mode, "--output", f"{mode}.csv")
        with (tmp_path / f"{mode}.csv").open() as file:
            (row,) = csv.DictReader(file)
        tables.append([float(row["fight"]), float(row["noFight"])])
    np.testing.assert_allclose(tables[1:], [tables[0]] * 2, atol=1e-4)

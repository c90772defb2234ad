"""`vtnpipe extract` end to end: real encoded video, a real Dask cluster, the real command line."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Vtnpipe, cli_environment, run_cli
from numbered_videos import CLIP_LENGTHS, draw_number, number_of_blocks, write_video
from PIL import Image
from rich.console import Console
from vtnpipe.manifests.errors import FeaturesError, StoppedError
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.lock import locked
from vtnpipe.pipelines.extract import extract
from vtnpipe.pipelines.extraction.settings import ExtractSettings

MEANS = ("--backbone", "toy_backbones:block_means", "--weights", "none")
MIXER = ("--backbone", "toy_backbones:mixer", "--weights", "none", "--feature-dtype", "float32")


def _snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return modification time and bytes of every file of a folder."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _features(folder: Path) -> dict[str, np.ndarray]:
    store = open_features(folder)
    return {name: store[name].features for name in store}


@pytest.fixture(scope="module")
def extracted_once(
    clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A feature folder of the numbered clips, and the output of the command."""
    folder = tmp_path_factory.mktemp("extracted")
    rows = [f"{name},{path},{name.upper()},train\n" for name, path in clips.items()]
    (folder / "manifest.csv").write_text("video_id,path,label,split\n" + "".join(rows))
    return folder / "f", run_cli(folder, "extract", "manifest.csv", "f", *MEANS).stdout


@pytest.fixture
def extracted(tmp_path: Path, extracted_once: tuple[Path, str]) -> str:
    """Output of the extraction, whose folder is copied to `f` in the test's own folder."""
    folder, printed = extracted_once
    shutil.copytree(folder, tmp_path / "f")
    return printed


def test_the_same_command_resumes_and_adds_new_rows(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe, extracted: str
) -> None:
    assert "4 ok, 0 partial, 0 failed" in extracted
    assert "dashboard" not in extracted  # without bokeh, on this machine, it is of no use
    store = open_features(tmp_path / "f")
    assert list(store) == list(CLIP_LENGTHS)
    for k, (name, length) in enumerate(CLIP_LENGTHS.items()):
        numbers = [number_of_blocks(row) for row in store[name].features]
        assert numbers == list(range(1000 * k, 1000 * k + length))
    assert {path.name for path in (tmp_path / "f").iterdir()} == {
        *("extraction.json", "backbone.safetensors", "manifest.csv", "plan", "shards"),
        *("failures.csv", "report.json"),
    }
    with (tmp_path / "f/failures.csv").open() as file:
        assert list(csv.reader(file))[1:] == []
    report = json.loads((tmp_path / "f/report.json").read_text())
    assert report["num_frames"] == report["num_extracted_frames"] == sum(CLIP_LENGTHS.values())

    # Again, with another label: nothing to do. A grown manifest: only what is new.
    shards = _snapshot(tmp_path / "f/shards")
    manifest.write_text(manifest.read_text().replace(",A,train", ",new,val"))
    assert "nothing to do" in vtnpipe("extract", manifest, "f", *MEANS).stdout
    assert ",new,val" in (tmp_path / "f/manifest.csv").read_text()
    assert _snapshot(tmp_path / "f/shards") == shards
    write_video(tmp_path / "e.mp4", 9, first=4000)
    (tmp_path / "bad.mp4").write_text("no video")
    with manifest.open("a") as file:
        file.write("e,e.mp4,E,val\nbad,bad.mp4,B,val\n")
    ran = vtnpipe("extract", manifest, "f", *MEANS, "--tls", code=1)
    lines = ran.stdout.splitlines()
    assert any("9 frames" in line for line in lines)
    assert any(line.startswith("failed bad: not-a-video") for line in lines)
    after = _snapshot(tmp_path / "f/shards")
    assert shards.items() <= after.items()
    assert list(open_features(tmp_path / "f")) == [*CLIP_LENGTHS, "e"]
    with (tmp_path / "f/failures.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["video_id"], line["status"], line["reason"]) == ("bad", "failed", "not-a-video")
    ran = vtnpipe("extract", manifest, "f", *MEANS, code=1)
    assert "nothing to do" in ran.stdout
    assert "failed bad: not-a-video" in ran.stdout
    assert _snapshot(tmp_path / "f/shards") == after


@pytest.mark.usefixtures("extracted")
def test_other_settings_in_the_same_folder_are_refused(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe
) -> None:
    before = _snapshot(tmp_path / "f")
    for options, message in [
        (MIXER, "backbone is 'toy_backbones:mixer' here and 'toy_backbones:block_means'"),
        (
            (*MEANS, "--feature-dtype", "float32"),
            "feature_dtype is 'float32' here and 'float16' in the folder",
        ),
        ((*MEANS, "--precision", "float16"), "precision is 'float16' here and '"),
    ]:
        assert message in vtnpipe("extract", manifest, "f", *options, code=2).stderr
    assert _snapshot(tmp_path / "f") == before


@pytest.mark.slow
@pytest.mark.usefixtures("extracted")
def test_a_changed_file_is_refused_or_extracted_again(
    tmp_path: Path, manifest: Path, clips: dict[str, Path], vtnpipe: Vtnpipe
) -> None:
    before = _snapshot(tmp_path / "f")
    changed = tmp_path / "a.mp4"
    changed.write_bytes(clips["b"].read_bytes())
    manifest.write_text(manifest.read_text().replace(str(clips["a"]), "a.mp4"))
    ran = vtnpipe("extract", manifest, "f", *MEANS, code=2)
    assert "video_id 'a' was extracted from" in ran.stderr
    assert _snapshot(tmp_path / "f") == before
    vtnpipe("extract", manifest, "f", *MEANS, "--redo-changed")
    assert len(open_features(tmp_path / "f")["a"].features) == CLIP_LENGTHS["b"]


def test_bad_usage_exits_with_2_and_writes_nothing(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe
) -> None:
    good = manifest.read_text()
    (tmp_path / "unknown.csv").write_text(good.replace("split", "side", 1))
    (tmp_path / "twice.csv").write_text(good + good.splitlines()[1] + "\n")
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    before = _snapshot(tmp_path)
    for arguments, message in [
        (("none.csv", "f", *MEANS), "none.csv: no such manifest"),
        (("unknown.csv", "f", *MEANS), "unknown.csv:1: unknown column 'side'"),
        (("twice.csv", "f", *MEANS), "twice.csv:6: video_id 'a' is also on line 2"),
        ((manifest, "f", "--backbone", "vit_tinyy", "--weights", "none"), "Unknown model"),
        ((manifest, "f", *MEANS[:3], "w.safetensors"), "neither a safetensors nor"),
        ((manifest, "f", *MEANS, "--device", "cuda:77"), "CUDA devices"),
        ((manifest, "f", *MEANS, "--batch-size", 0), "--batch-size 0: it must be at least 1"),
        ((manifest, "f", *MEANS, "--precision", "int8"), "is not one of"),
        ((manifest, "f", *MEANS, "--shard-frames", "some"), "it must be auto or a whole number"),
        ((manifest, "f", *MEANS, "--fps", 5, "--frame-stride", 2), "leave out one of the two"),
        ((manifest, "f", *MEANS, "--views", "three-crop"), "leaves nothing beside the center"),
        ((manifest, "f", *MEANS, "--pool", "avg"), "leave out --pool"),
        ((manifest, "full", *MEANS), "not a feature folder and not empty"),
        ((manifest, manifest, *MEANS), "not a feature folder"),
        ((manifest,), "Missing"),
    ]:
        assert message in vtnpipe("extract", *arguments, code=2).stderr, arguments
        assert _snapshot(tmp_path) == before


def _command_lines() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            found.append((int(entry.name), command + environment))
    return found


@pytest.mark.slow
def test_runs_of_two_workers_that_are_killed_end_with_the_features_of_an_undisturbed_run(
    tmp_path: Path, write_csv: Callable[..., Path], vtnpipe: Vtnpipe
) -> None:
    for number in range(12):
        write_video(tmp_path / f"{number}.mp4", 150 if number else 300, height=240, width=320)
    manifest = write_csv((f"v{n}", f"{n}.mp4", "x", "train") for n in range(12))
    options = ("--threads", "1", "--precision", "float32")
    options += ("--batch-size", "32", "--shard-frames", "150")
    vtnpipe("extract", manifest, "whole", *MIXER, *options, "--workers", "1")

    mark = f"VTNPIPE_TEST={tmp_path}"
    arguments = ["extract", str(manifest), "killed", *MIXER, *options, "--workers", "2"]
    for signal_number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 3)):
        process = subprocess.Popen(
            [sys.executable, "-m", "vtnpipe", *arguments],
            cwd=tmp_path,
            env=cli_environment(VTNPIPE_TEST=str(tmp_path)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        done = len(list(tmp_path.glob("killed/shards/*.h5")))
        deadline = time.monotonic() + 100
        while len(list(tmp_path.glob("killed/shards/*.h5"))) < done + 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors.decode()
        deadline = time.monotonic() + 30
        while left := [pid for pid, text in _command_lines() if mark in text]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
    assert len(list(tmp_path.glob("killed/shards/*.h5"))) < 13
    vtnpipe(*arguments)
    assert len(open_features(tmp_path / "killed").entries["v0"]) == 2  # parts
    whole, killed = _features(tmp_path / "whole"), _features(tmp_path / "killed")
    assert list(whole) == list(killed)
    for name in whole:
        np.testing.assert_array_equal(whole[name], killed[name])
    assert sorted(p.name for p in (tmp_path / "killed").rglob("*")) == sorted(
        p.name for p in (tmp_path / "whole").rglob("*")
    )


@pytest.mark.slow
def test_a_worker_in_this_process_leaves_its_threads_as_they_were(
    tmp_path: Path, manifest: Path
) -> None:
    """MKL's number of threads belongs to the process; it changes the bits of later products."""

    def threads() -> list[str]:
        lines = torch.__config__.parallel_info().splitlines()
        return [line for line in lines if "threads" in line.lower()]

    before = threads()
    assert torch.get_num_threads() == 1
    settings = ExtractSettings(
        backbone="toy_backbones:block_means", weights="none", workers=1, threads=2
    )
    extract(manifest, tmp_path / "f", settings)
    assert threads() == before


def test_views_of_sampled_frames_in_small_tasks(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtnpipe.pipelines.console.LINE_SECONDS", (0.0, 0.0))
    printed = io.StringIO()
    settings = ExtractSettings(
        backbone="toy_backbones:block_means",
        weights="none",
        workers=1,
        fps=5,
        views="flip",
        shard_frames="3",
    )
    report = extract(manifest, tmp_path / "f", settings, console=Console(file=printed))
    store = open_features(tmp_path / "f")
    for k, (name, length) in enumerate(CLIP_LENGTHS.items()):
        assert store[name].frame_index.tolist() == list(range(0, length, 5))
        assert store[name].features.shape == (len(range(0, length, 5)), 2, 16)
        numbers = [number_of_blocks(row) for row in store[name].features[:, 0]]
        assert numbers == list(range(1000 * k, 1000 * k + length, 5))
    assert [len(store.entries[name]) for name in "abcd"] == [3, 2, 1, 1]

    total = sum(len(range(0, length, 5)) for length in CLIP_LENGTHS.values())
    lines = printed.getvalue().splitlines()
    counts = [line for line in lines if line.startswith("extract: ")]
    assert counts[-1].startswith(f"extract: {total}/{total} frames, ")
    assert report.workers is not None
    assert report.workers.description in lines
    assert "1 decoder process each" in report.workers.description
    assert report.throughput is not None
    assert any(line.endswith(report.throughput.limit) for line in lines)
    written = json.loads((tmp_path / "f/report.json").read_text())
    stages = {"decode", "preprocess", "copy", "forward", "write", "wait"}
    assert written["throughput"]["seconds_by_stage"].keys() == stages
    assert written["throughput"]["possible_frames_per_second"] > 0
    assert written["throughput"]["busy"].keys() == {"backbone", "decoding", "preparing frames"}
    assert written["workers"]["num_decoder_processes"] == 1


@pytest.mark.slow
def test_a_closed_output_pipe_does_not_stop_the_run(manifest: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vtnpipe", "extract", manifest.name, "f", *MEANS]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=cli_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "device" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(120) == 0
    assert len(open_features(tmp_path / "f")) == len(CLIP_LENGTHS)
    assert not (tmp_path / "f/.lock").exists()


@pytest.mark.slow
def test_parts_share_a_plan_and_the_last_one_reports(
    clips: dict[str, Path], tmp_path: Path
) -> None:
    rows = [f"{name},{path},{name},train\n" for name, path in clips.items()]
    manifest, folder = tmp_path / "m.csv", tmp_path / "f"
    manifest.write_text("video_id,path,label,split\n" + "".join(rows))
    means = ExtractSettings(
        backbone="toy_backbones:mixer", weights="none", shard_frames="10", workers=1
    )

    report = extract(manifest, folder, replace(means, part="1/2"))
    num_frames = sum(CLIP_LENGTHS.values())
    assert 0 < report.num_frames < num_frames
    assert not (folder / "report.json").exists()
    with pytest.raises(StoppedError, match="tasks have no shard"):
        extract(manifest, folder, replace(means, finish=True))
    temporary = folder / "shards/.another-parts.tmp"
    temporary.touch()
    with (
        locked(FeatureFolder(folder), is_shared=True),  # as other parts do
        pytest.raises(FeaturesError, match="another run is writing"),
    ):
        extract(manifest, folder, means)
    with locked(FeatureFolder(folder), is_shared=True):
        report = extract(manifest, folder, replace(means, part="2/2"))
    assert (report.num_frames, report.num_videos["ok"]) == (num_frames, len(clips))
    assert temporary.exists()  # it may be that of a part at work
    assert json.loads((folder / "report.json").read_text())["num_frames"] == num_frames
    assert len(list((folder / "plan").iterdir())) == 1
    extract(manifest, folder, replace(means, finish=True))
    assert not list(folder.rglob(".*"))
    store = open_features(folder)
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS
    manifest.write_text(manifest.read_text() + "new,new.mp4,a,train\n")
    with pytest.raises(StoppedError, match="1 videos are in no plan yet, 'new'"):
        extract(manifest, folder, replace(means, finish=True))


def test_folders_and_archives_of_images(tmp_path: Path, vtnpipe: Vtnpipe) -> None:
    images = {f"{n}.jpg": draw_number(n, 64, 128) for n in range(30)}
    (tmp_path / "folder").mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / "folder" / name, quality=95)
    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        archive.add(tmp_path / "folder", "v")
    write_video(tmp_path / "v.mp4", 30)
    (tmp_path / "m.csv").write_text(
        "video_id,path,label,split,fps\n"
        "a,folder,x,train,12.5\nb,archive.tar,x,train,\nc,v.mp4,x,train,\n"
    )
    own = ("--backbone", "toy_backbones:block_means", "--weights", "none", "--image-fps", 10)
    vtnpipe("extract", "m.csv", "f", *own, "--workers", 2)
    store = open_features(tmp_path / "f")
    for name, fps in (("a", 12.5), ("b", 10), ("c", 25)):
        numbers = [number_of_blocks(row) for row in store[name].features.astype(float)]
        assert numbers == list(range(30)), name
        np.testing.assert_allclose(store[name].timestamps, np.arange(30) / fps, rtol=1e-9)
    assert (tmp_path / "f/manifest.csv").read_text().splitlines()[2].endswith(",train,10.0")
    assert "nothing to do" in vtnpipe("extract", "m.csv", "f", *own).stdout
    vtnpipe("features", "verify", "f", "--recompute", 20)
    (tmp_path / "folder/3.jpg").rename(tmp_path / "folder/99.jpg")
    ran = vtnpipe("extract", "m.csv", "f", *own, code=2)
    assert "'a' was extracted from" in ran.stderr

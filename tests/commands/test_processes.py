"""Several processes that train and evaluate one model together, as `torchrun` starts them."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import cli_environment, run_cli
from feature_folders import made_up_features
from vtnpipe.temporal.checkpoint import read_weights

# 21 clips in batches of 5: the last batch has 1 clip, so one of two processes has none of it.
OPTIONS = ("--layers", 1, "--heads", 2, "--intermediate", 16, "--head-dim", 8, "--batch-size", 5)
OPTIONS += ("--epochs", 3, "--dropout", 0, "--head-dropout", 0, "--class-weights", "balanced")
OPTIONS += ("--recipe", "paper", "--lr", 0.05, "--device", "cpu")
NOISY = ("train_loss", "loss", "videos_per_second", "waiting")


def _together(folder: Path, *arguments: object, num_nodes: int = 1) -> str:
    """Run a command in two processes, on one node or on two; return what they print."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    where = f"--nnodes {num_nodes} --nproc-per-node {2 // num_nodes} --rdzv-backend c10d"
    where += f" --rdzv-endpoint 127.0.0.1:{port} --rdzv-id x"  # as the batch file has it
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", *where.split()),
                *("-m", "vtnpipe", *map(str, arguments)),
            ],
            cwd=folder,
            env=cli_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(num_nodes)
    ]
    printed = [node.communicate(timeout=200)[0] for node in nodes]
    assert all(node.returncode == 0 for node in nodes), printed
    return "".join(printed)


@pytest.mark.slow
def test_two_processes_give_the_weights_and_metrics_of_one(tmp_path: Path) -> None:
    labels = {
        split: {f"{split}{n}": "abc"[n % 3] for n in range(count)}
        for split, count in (("train", 21), ("val", 13))
    }
    made_up_features(tmp_path / "f", labels, views=("center", "flip"))
    run_cli(tmp_path, "train-temporal", "f", "one", *OPTIONS)
    printed = _together(tmp_path, "train-temporal", "f", "two", *OPTIONS, num_nodes=2)
    assert printed.count("epoch   3/3") == 1
    assert "x 2 processes" in printed
    one, two = (read_weights(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert sum(float(tensor.abs().sum()) for tensor in one.values()) > 0
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, atol=1e-5, rtol=1e-4, msg=key)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for first, second in zip(*lines, strict=True):
        assert {k: v for k, v in first.items() if k not in NOISY} == {
            k: v for k, v in second.items() if k not in NOISY
        }
        assert abs(first["train_loss"] - second["train_loss"]) < 1e-5

    clips = ("--clips", 3, "--clip-frames", 4, "--clip-seconds", 1.0)
    run_cli(tmp_path, "evaluate", "one", "f", *clips)
    alone = {path.name: path.read_bytes() for path in (tmp_path / "one/predictions").iterdir()}
    printed = _together(tmp_path, "evaluate", "one", "f", *clips, "--device", "cpu")
    assert printed.count("split val, 3 clips per video: top-1") == 1
    values = [
        json.loads(data)["metrics"]
        for data in (
            alone["val+3clips.json"],
            (tmp_path / "one/predictions/val+3clips.json").read_bytes(),
        )
    ]
    assert abs(values[0].pop("loss") - values[1].pop("loss")) < 1e-6
    assert values[0] == values[1]
    with np.load(tmp_path / "one/predictions/val+3clips.npz") as arrays:
        assert arrays["logits"].shape == (13, 3)
        assert arrays["video_ids"].tolist() == [f"val{n}" for n in range(13)]
        assert arrays["classes"][arrays["targets"]].tolist() == ["abc"[n % 3] for n in range(13)]

"""Training learns, resumes with the same weights wherever it stopped, and keeps the best epoch."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from vtnpipe.manifests.errors import FeaturesError, SettingsError, StoppedError
from vtnpipe.manifests.feature_store import FeatureStore
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.temporal.checkpoint import RunFolder, read_weights, save_weights
from vtnpipe.temporal.clips import ALL_FRAMES, ClipSampling
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.dataset import ClipDataset, EvenClips, RandomClips
from vtnpipe.temporal.distributed import accelerated
from vtnpipe.temporal.feature_reader import FeatureReader
from vtnpipe.temporal.inference import Scored, predict_logits
from vtnpipe.temporal.metrics import task_metrics
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.optim import Recipe
from vtnpipe.temporal.tasks import read_targets
from vtnpipe.temporal.train import (
    Callbacks,
    CheckpointPolicy,
    EpochReport,
    Validation,
    is_best,
    train,
)

RECIPE = Recipe(
    epochs=6,
    batch_size=7,
    optimizer="adamw",
    lr=3e-3,
    weight_decay=0.0,
    keep="best",
    drop_last=False,
)
CONFIG = TemporalConfig(
    feature_dim=12, num_classes=2, num_layers=1, num_heads=2, intermediate_dim=24, head_dim=12
)
CLIPS = RandomClips(ClipSampling(num_frames=8, seconds=2.0))
TIMES = ("videos_per_second", "waiting")
MakeStore = Callable[..., FeatureStore]


def _train(
    folder: Path,
    store: FeatureStore,
    rows: list[VideoRow],
    recipe: Recipe = RECIPE,
    *,
    config: TemporalConfig = CONFIG,
    clips: RandomClips = CLIPS,
    **options: Any,
) -> tuple[TemporalClassifier, RunFolder]:
    folder.mkdir(exist_ok=True)
    targets = read_targets(rows, ["a", "b"])
    training, validation = (
        ClipDataset(
            FeatureReader(store), [row.video_id for row in rows], targets, wanted, position_fps=25
        )
        for wanted in (clips, EvenClips())
    )
    torch.manual_seed(7)
    model = TemporalClassifier(config)
    with accelerated("cpu", recipe.precision) as accelerator:
        train(
            model,
            config,
            training,
            recipe,
            RunFolder(folder),
            accelerator,
            validate=lambda network, should_stop: Validation.of(
                Scored(
                    predict_logits(
                        network,
                        validation,
                        accelerator=accelerator,
                        max_tokens=120,
                        should_stop=should_stop,
                    )
                ),
                targets,
                ["a", "b"],
                config,
            ),
            save=lambda path: save_weights(model, path, prefix="temporal."),
            **options,
        )
    return model, RunFolder(folder)


def _stop_after(num_asked: int) -> Callbacks:
    """Callbacks that stop after so many steps and evaluated batches."""
    asked = iter(range(1000))
    return Callbacks(should_stop=lambda: next(asked) == num_asked)


def _assert_same_weights(one: RunFolder, other: RunFolder) -> None:
    for name in ("kept", "last"):
        first, second = (read_weights(getattr(run, name)) for run in (one, other))
        assert all(torch.equal(first[key], second[key]) for key in first)


def _timeless(run: RunFolder) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def test_an_epoch_that_scored_fewer_videos_is_not_the_best() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=2)
    right = task_metrics(torch.eye(2), torch.arange(2), ["a", "b"], config)
    before = [{"num_scored": 2, "top1": 0.5}]
    assert is_best(right, 2, before)
    assert not is_best(right, 1, before)
    assert is_best(right, 3, [{"num_scored": 2, "top1": 1.0}])  # the earlier epoch scored fewer
    assert not is_best(right, 2, [{"num_scored": 2, "top1": 1.0}])


def test_a_stopped_run_resumes_to_the_same_weights(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    _, whole = _train(tmp_path / "whole", store, rows)
    # An epoch has four steps, and eight batches in its evaluation.
    for num_asked, place in ((0, "1 of 4"), (2, "4 of 4"), (9, "2 of 4"), (15, "4 of 4")):
        with pytest.raises(StoppedError, match=rf"after {place} steps, and saved a checkpoint"):
            _train(tmp_path / "stopped", store, rows, callbacks=_stop_after(num_asked))
        torch.manual_seed(999)  # the state of the global generator does not matter
        with (tmp_path / "stopped/metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": 99}) + "\n")  # as of a run killed before its checkpoint
    _, stopped = _train(tmp_path / "stopped", store, rows)
    _assert_same_weights(whole, stopped)
    lines = _timeless(stopped)
    assert list(lines[0]) == [
        *("epoch", "lr", "train_loss", "num_scored", "lost"),
        *("top1", "top5", "mean_class_accuracy", "loss", "is_best"),
    ]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines == _timeless(whole)


def test_checkpoints_inside_an_epoch_change_nothing(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    _, whole = _train(tmp_path / "whole", store, rows)
    often = CheckpointPolicy(minutes=0.0, num_kept=3)

    class KilledError(Exception):
        pass

    def kill(epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (3, 2):
            raise KilledError

    with pytest.raises(KilledError):
        _train(
            tmp_path / "often", store, rows, checkpoints=often, callbacks=Callbacks(on_step=kill)
        )
    assert sorted(path.name for path in (tmp_path / "often/checkpoints").iterdir()) == [
        "epoch-000003-step-00000000.pt",
        "epoch-000003-step-00000001.pt",
        "epoch-000003-step-00000002.pt",
    ]
    _, again = _train(tmp_path / "often", store, rows, checkpoints=often)
    _assert_same_weights(whole, again)
    assert _timeless(whole) == _timeless(again)


def test_threads_that_load_batches_change_nothing(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    recipe = Recipe(epochs=2, batch_size=5)
    _, one = _train(tmp_path / "one", store, rows, recipe)
    _, other = _train(tmp_path / "other", store, rows, recipe, num_workers=2)
    _assert_same_weights(one, other)


def test_an_error_in_a_thread_that_loads_batches_ends_the_training(
    tmp_path: Path,
    make_store: MakeStore,
    rows: list[VideoRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: ClipDataset, keys: object) -> None:
        raise MemoryError("no memory for a batch")

    monkeypatch.setattr(ClipDataset, "batch", fail)
    with pytest.raises(MemoryError, match="no memory for a batch"):
        _train(tmp_path / "run", make_store(), rows, Recipe(epochs=2), num_workers=2)
    assert not [one for one in threading.enumerate() if one.name.startswith("batches")]


def test_an_error_of_the_decoder_pool_is_no_stop(
    tmp_path: Path,
    make_store: MakeStore,
    rows: list[VideoRow],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: ClipDataset, keys: object) -> None:
        raise StoppedError("the decoder process does not start")

    monkeypatch.setattr(ClipDataset, "batch", fail)
    with pytest.raises(StoppedError, match="the decoder process does not start"):
        _train(tmp_path / "run", make_store(), rows, Recipe(epochs=2), num_workers=2)


@pytest.mark.parametrize("clips", [CLIPS, RandomClips(ALL_FRAMES)])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_gradient_accumulation_takes_the_same_steps(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow], clips: RandomClips, weights: Any
) -> None:
    # Without dropout, which is different in every part, and with classes of different sizes.
    store, few = make_store(), [*rows[::2], *rows[1:9:2]]
    settings = {"batch_size": 9, "epochs": 2, "label_smoothing": 0.1, "class_weights": weights}
    without = replace(CONFIG, dropout=0.0, attention_dropout=0.0, head_dropout=0.0)
    found = []
    for parts in (1, 2, 4):
        recipe = Recipe(**{**settings, "gradient_accumulation": parts, "max_grad_norm": 0.3})
        model, _ = _train(tmp_path / f"{parts}", store, few, recipe, config=without, clips=clips)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-4)


def test_training_learns_and_keeps_the_best_epoch(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    recipe = Recipe(epochs=30, batch_size=8, optimizer="adamw", lr=1e-2)
    model, run = _train(tmp_path / "run", store, rows, recipe)
    lines = _timeless(run)
    assert lines[-1]["train_loss"] < 0.6 * lines[0]["train_loss"]
    best = max(line["top1"] for line in lines)
    assert best >= 0.9
    weights = {k.removeprefix("temporal."): v for k, v in read_weights(run.kept).items()}
    model.load_state_dict(weights)
    targets = read_targets(rows, ["a", "b"])
    dataset = ClipDataset(
        FeatureReader(store), [row.video_id for row in rows], targets, EvenClips(), position_fps=25
    )
    with accelerated("cpu", "float32") as accelerator:
        for most in (1, 100, 10_000):
            logits = predict_logits(model, dataset, max_tokens=most, accelerator=accelerator)
            assert float((logits.argmax(1) == targets).double().mean()) == pytest.approx(best)


def test_training_in_bfloat16_learns_and_keeps_float32_weights(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    recipe = Recipe(epochs=8, batch_size=8, optimizer="adamw", lr=1e-2, precision="bfloat16")
    model, run = _train(tmp_path / "run", make_store(), rows, recipe)
    lines = _timeless(run)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with pytest.raises(SettingsError, match="--precision float16 with --device cpu"):
        _train(tmp_path / "half", make_store, rows, Recipe(precision="float16"))  # type: ignore[arg-type]


def test_training_stops_after_epochs_without_improvement(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    recipe = Recipe(epochs=50, batch_size=8, lr=0.0, patience=3)
    for _ in range(2):
        _, run = _train(tmp_path / "run", store, rows, recipe)
        assert [line["is_best"] for line in _timeless(run)] == [True, False, False, False]


def test_the_learning_rate_follows_the_schedule_step_by_step(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    reports: list[EpochReport] = []
    recipe = Recipe(epochs=4, batch_size=8, lr=1e-3, schedule="cosine", warmup_epochs=1)
    _train(
        tmp_path / "run", make_store(), rows, recipe, callbacks=Callbacks(on_epoch=reports.append)
    )
    expected = [1e-3 * recipe.lr_factor(epoch + 2 / 3) for epoch in range(4)]
    assert [report.lr for report in reports] == pytest.approx(expected)


def test_a_loss_that_is_not_finite_is_an_error(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    recipe = Recipe(epochs=3, lr=1e30)
    with pytest.raises(SettingsError, match=r"--lr 1e\+30: the loss became"):
        _train(tmp_path / "run", make_store(), rows, recipe)


def test_a_damaged_checkpoint_is_an_error_that_names_it(
    tmp_path: Path, make_store: MakeStore, rows: list[VideoRow]
) -> None:
    store = make_store()
    with pytest.raises(StoppedError):
        _train(tmp_path / "run", store, rows, callbacks=_stop_after(9))
    damaged = tmp_path / "run/checkpoints/epoch-000001-step-00000002.pt"
    damaged.write_bytes(b"damaged")
    with pytest.raises(FeaturesError, match=r"epoch-000001-step-00000002\.pt: cannot read"):
        _train(tmp_path / "run", store, rows)
    damaged.unlink()
    _train(tmp_path / "run", store, rows)

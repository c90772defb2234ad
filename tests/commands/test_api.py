"""The Python functions of the main commands, on real videos, and results as tables."""

from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import vtnpipe
from numbered_videos import write_clips
from rich.console import Console
from stage_two import SHAPE, write_labelled_clips
from vtnpipe.manifests.errors import ManifestError, SettingsError
from vtnpipe.manifests.tabular import NUM_SHOWN, Tabular

QUIET = Console(quiet=True)
OWN = {"backbone": "toy_backbones:block_means", "weights": "none", "console": QUIET}


def test_from_a_manifest_to_predictions(tmp_path: Path) -> None:
    manifest = write_labelled_clips(tmp_path)
    store = vtnpipe.extract_features(manifest, tmp_path / "f", frame_stride=2, **OWN)
    assert store.spec.frame_stride == 2
    table = store.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table.status.value_counts().to_dict() == {"ok": 12, "failed": 1}
    assert table[table.status == "failed"].reason.tolist() == ["missing"]
    assert set(table.columns) >= {"video_id", "label", "split", "frames", "last_second"}

    run = tmp_path / "run"
    training = vtnpipe.train_temporal(store, run, epochs=2, console=QUIET, **SHAPE)
    epochs = training.to_pandas()
    assert epochs.epoch.tolist() == [1, 2]
    assert {"train_loss", "top1", "lr"} <= set(epochs.columns)

    report = vtnpipe.evaluate(run, store, console=QUIET)
    metrics = report.to_pandas().set_index("metric")
    assert metrics.value["top1"] == report.values["top1"]
    assert metrics.low["top1"] <= metrics.value["top1"] <= metrics.high["top1"]

    found = vtnpipe.predict(run, [tmp_path / "0.mp4", tmp_path / "1.mp4"])
    one = vtnpipe.predict(run, tmp_path / "0.mp4")
    rows = found.to_pandas()
    assert rows.video.tolist() == [str(tmp_path / "0.mp4"), str(tmp_path / "1.mp4")]
    np.testing.assert_allclose(rows[["down", "up"]].sum(axis=1), 1, atol=1e-5)
    assert torch.equal(one.predictions[0].logits, found.predictions[0].logits)
    for result in (store, training, report, found):
        page = result._repr_html_()
        assert page.startswith("<table><thead><tr><th>")
        assert page.count("<tr>") == len(result.to_pandas()) + 1


def test_a_folder_of_classes_and_a_list_of_files(tmp_path: Path) -> None:
    write_clips(tmp_path)
    for name in "abcd":
        (tmp_path / "videos" / name).mkdir(parents=True)
    paths = [next(tmp_path.glob(f"{name}.*")) for name in "abc"]
    store = vtnpipe.extract_features(paths, tmp_path / "listed", **OWN)
    assert set(store) == {"a.mp4", "b.mkv", "c.webm"}
    for path in paths:
        path.rename(tmp_path / "videos" / path.stem / path.name)
    store = vtnpipe.extract_features(tmp_path / "videos", tmp_path / "built", **OWN)
    assert store.to_pandas().label.tolist() == ["a", "b", "c"]
    assert (tmp_path / "built.csv").exists()
    rows = [vtnpipe.VideoRow(video_id="x", path=str(tmp_path / "videos/a/a.mp4"), label="l")]
    assert list(vtnpipe.extract_features(rows, tmp_path / "rows", **OWN)) == ["x"]


def test_settings_are_checked(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    with pytest.raises(SettingsError, match="frame_strides=2: no such setting; did you mean"):
        vtnpipe.extract_features(manifest, tmp_path / "f", frame_strides=2)
    with pytest.raises(SettingsError, match="--frame-stride 0: it must be at least 1"):
        vtnpipe.extract_features(manifest, tmp_path / "f", frame_stride=0)
    with pytest.raises(ManifestError, match="no such manifest"):
        vtnpipe.extract_features(manifest, tmp_path / "f", **OWN)
    with pytest.raises(SettingsError, match=r"two files are named 'a\.mp4'"):
        vtnpipe.extract_features(["x/a.mp4", "y/a.mp4"], tmp_path / "f", **OWN)
    assert list(tmp_path.iterdir()) == []


def test_parts_and_batches_of_stored_features(extracted: Path) -> None:
    store = vtnpipe.open_features(extracted / "f")
    video = store["v0"]
    assert len(video) == len(video.features) > 6
    part = video[2:5]
    np.testing.assert_array_equal(part.features, video.features[2:5])
    assert (part.frame_index.tolist(), part.fps) == (video.frame_index[2:5].tolist(), video.fps)
    second, fifth = video.timestamps[[2, 5]].tolist()
    assert video.between(second, fifth).frame_index.tolist() == part.frame_index.tolist()
    assert len(video.between(100, 200)) == 0

    batches = list(store.batches(5))
    assert [len(batch.video_ids) for batch in batches] == [5, 5, 2]
    assert [name for batch in batches for name in batch.video_ids] == list(store)
    for batch in batches:
        assert batch.mask.sum(1).tolist() == [len(store[name]) for name in batch.video_ids]
        assert not batch.features[~batch.mask].any()
        for row, name in enumerate(batch.video_ids):
            np.testing.assert_array_equal(
                batch.features[row][batch.mask[row]], store[name].features
            )
    assert [batch.video_ids for batch in store.batches(2, ["v3", "v1"])] == [["v3", "v1"]]


def test_features_as_a_torch_dataset(extracted: Path) -> None:
    store = vtnpipe.open_features(extracted / "f")
    train = vtnpipe.FeatureDataset(store, split="train")
    assert train.class_names == ["down", "up"]
    loader = torch.utils.data.DataLoader(train, batch_size=3, collate_fn=train.collate)
    batches = list(loader)
    assert sum(len(batch["video_id"]) for batch in batches) == len(train) == 8
    for batch in batches:
        assert batch["features"].dtype == torch.float32
        assert batch["features"].shape[:2] == batch["mask"].shape == batch["timestamps"].shape
        for row, name in enumerate(batch["video_id"]):
            mask = batch["mask"][row]
            expected = torch.from_numpy(store[name].features.copy())
            assert torch.equal(batch["features"][row][mask], expected)
    labels = torch.cat([batch["label"] for batch in batches])
    assert sorted(labels.unique().tolist()) == [0, 1]


def test_a_table_in_a_notebook_is_short_and_escaped() -> None:
    class Rows(Tabular):
        def __init__(self, num_rows: int) -> None:
            self.num_rows = num_rows

        def table(self):
            for number in range(self.num_rows):
                yield {"<a>": f"<b>{number}", "n": 1234567, "x": 0.5, "none": None}

    page = Rows(NUM_SHOWN + 1)._repr_html_()
    assert page.count("<tr>") == NUM_SHOWN + 1
    assert page.endswith("<p>…</p>")
    assert "<td>&lt;b&gt;0</td><td>1,234,567</td><td>0.5</td><td></td>" in page
    assert "&lt;a&gt;" in page
    assert Rows(0)._repr_html_().startswith("<p>")

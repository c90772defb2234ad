"""`vtnpipe predict`: the three modes of inference, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from stage_two import SETTINGS, make_sensitive, of_features
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.evaluate import EvaluateSettings, evaluate
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.predict import PredictSettings, predict
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.temporal.run_folder import RunFolder


def test_the_three_modes_agree_in_their_logits(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    temporal = make_sensitive(RunFolder(folder / "run"))
    video = open_features(folder / "f")["v11"]
    features, positions = torch.tensor(video.features)[None], torch.arange(31)[None]
    with torch.inference_mode():
        logits = temporal(features, positions)
        for other in (temporal(features.flip(1), positions), temporal(features, positions * 2)):
            assert (other - logits).abs().max() > 0.01

    videos = [folder / f"{number}.mp4" for number in (0, 3, 11)]
    ids = ["v0", "v3", "v11"]
    found = [
        predict(folder / "run", videos, PredictSettings(mode="end-to-end")),
        predict(folder / "run", videos, PredictSettings(mode="chunked", chunk_frames=5)),
        predict(folder / "run", ids, PredictSettings(mode="features", features=str(folder / "f"))),
    ]
    by_mode = [
        torch.stack([p.logits for p in r.predictions if p.logits is not None]) for r in found
    ]
    assert by_mode[0].shape == (3, 2)
    for other in by_mode[1:]:
        torch.testing.assert_close(other, by_mode[0], atol=1e-4, rtol=0)


def test_predicting_from_features_is_evaluating(two_views: Path) -> None:
    evaluate(two_views / "run", two_views / "f", EvaluateSettings(bootstrap=0))
    settings = PredictSettings(mode="features", features=str(two_views / "f"))
    with np.load(two_views / "run/predictions/val.npz") as arrays:
        ids = [str(video_id) for video_id in arrays["video_ids"]]
        predictions = predict(two_views / "run", ids, settings).predictions
        for prediction, logits in zip(predictions, arrays["logits"], strict=True):
            assert prediction.logits is not None
            torch.testing.assert_close(
                prediction.logits, torch.from_numpy(logits), atol=1e-5, rtol=1e-4
            )


def test_faults_have_their_errors(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    with pytest.raises(SettingsError, match="needs --features FOLDER"):
        PredictSettings(mode="features")
    with pytest.raises(SettingsError, match="its folder is missing"):
        predict(folder / "run", ["0.mp4"], PredictSettings(output=str(folder / "no/p.csv")))
    every = predict(folder / "run", [], of_features(folder / "f"))
    statuses = open_features(folder / "f").statuses
    assert {one.video for one in every.predictions} == set(statuses)
    failed = {one.video for one in every.predictions if one.logits is None}
    assert failed == {name for name, status in statuses.items() if status == "failed"}
    assert every.exit_code == (1 if failed else 0)
    with pytest.raises(FeaturesError, match="has no video_id 'x'"):
        predict(folder / "run", ["x"], of_features(folder / "f"))
    (folder / "run/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FeaturesError, match=r"model\.safetensors"):
        VideoTransformerNetwork.from_pretrained(folder / "run")

"""`vtnpipe import-checkpoint`: imported models give the logits of the authors' code."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors_checkpoint import BACKBONE, CONFIG, AuthorsNetwork, write_checkpoint
from command_line import run_cli
from numbered_videos import write_video
from vtnpipe.manifests.errors import CheckpointError, SettingsError
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.pipelines.import_checkpoint import ImportCheckpointSettings, import_checkpoint
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.predict import PredictSettings, predict

REFERENCE = Path(__file__).parents[3] / "shared" / "reference-vtn"


@pytest.fixture(scope="module")
def authors() -> AuthorsNetwork:
    return AuthorsNetwork()


@pytest.mark.shared
@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the authors' numbers are not on this machine")
def test_equals_the_authors_model(tmp_path: Path) -> None:
    import_checkpoint(REFERENCE / "reference_vtn.pyth", tmp_path / "model")
    model = VideoTransformerNetwork.from_pretrained(tmp_path / "model")
    assert model.config.spec.backbone == "vit_tiny_patch16_224"
    outputs = np.load(REFERENCE / "reference_outputs.npz")
    positions = torch.from_numpy(outputs["frame_index"])
    generator = torch.Generator().manual_seed(11)
    frames = torch.randn(2, 3, 40, 7, 7, generator=generator)
    frames = frames.repeat_interleave(32, -1).repeat_interleave(32, -2).transpose(1, 2)
    with torch.inference_mode():
        from_frames = model(frames, positions)
        from_features = model.temporal(torch.from_numpy(outputs["features"]), positions)
    for logits in (from_frames, from_features):
        np.testing.assert_allclose(logits.numpy(), outputs["logits"], atol=1e-4)


def test_through_the_command_line(tmp_path: Path, authors: AuthorsNetwork) -> None:
    write_checkpoint(authors, tmp_path / "a.pyth")
    (tmp_path / "classes.txt").write_text("".join(f"class {n}\n" for n in range(7)))
    command = ("import-checkpoint", "a.pyth", "model", "--classes", "classes.txt")
    ran = run_cli(tmp_path, *command)
    assert f"model: {BACKBONE}, 2 layers, window 32, 7 classes, 6.2M parameters" in ran.stdout

    model = VideoTransformerNetwork.from_pretrained(tmp_path / "model")
    assert model.config.class_names == [f"class {n}" for n in range(7)]
    preprocessing = model.config.preprocessing
    assert preprocessing.mean == (0.45,) * 3
    assert preprocessing.std == (0.225,) * 3
    assert preprocessing.input_size == (3, 224, 224)
    assert round(224 / preprocessing.crop_pct) == 256
    assert model.config.temporal.position_fps is None  # positions are frame numbers
    assert preprocessing.style == "pyslowfast"
    frames, positions = torch.randn(2, 5, 3, 224, 224), torch.arange(5).repeat(2, 1) * 90
    features, far = torch.randn(2, 170, 192), torch.arange(170).repeat(2, 1) * 3  # beyond the table
    with torch.inference_mode():
        torch.testing.assert_close(
            model(frames, positions), authors(frames, positions), atol=1e-4, rtol=0
        )
        torch.testing.assert_close(
            model.temporal(features, far), authors.temporal(features, far), atol=1e-4, rtol=0
        )


@pytest.mark.slow
def test_features_are_extracted_with_an_imported_models_backbone_and_preprocessing(
    tmp_path: Path, authors: AuthorsNetwork
) -> None:
    write_checkpoint(authors, tmp_path / "a.pyth")
    import_checkpoint(tmp_path / "a.pyth", tmp_path / "model")
    write_video(tmp_path / "v.mp4", 9, first=40)
    (tmp_path / "m.csv").write_text("video_id,path,label,split\nv,v.mp4,3,val\n")
    extract = ("extract", "m.csv", "f", "--weights", "model")
    ran = run_cli(tmp_path, *extract, "--feature-dtype", "float32", "--precision", "float32")
    assert f"backbone {BACKBONE}, weights and preprocessing: those of model" in ran.stdout
    assert "nothing to do" in run_cli(tmp_path, *extract, "--feature-dtype", "float32").stdout
    settings = PredictSettings(mode="features", features=str(tmp_path / "f"))
    stored = predict(tmp_path / "model", ["v"], settings).predictions[0].logits
    decoded = predict(tmp_path / "model", [tmp_path / "v.mp4"]).predictions[0].logits
    assert stored is not None
    assert decoded is not None
    torch.testing.assert_close(stored, decoded, atol=1e-4, rtol=0)
    assert len(open_features(tmp_path / "f")["v"].features) == 9


def test_wrapped_names_and_an_old_counter_are_accepted(
    tmp_path: Path, authors: AuthorsNetwork
) -> None:
    path = write_checkpoint(authors, tmp_path / "a.pyth")
    found = torch.load(path, weights_only=True)
    state = {f"module.{key}": tensor for key, tensor in found["model_state"].items()}
    state["module.temporal_encoder.embeddings.position_ids"] = torch.arange(120)[None]
    torch.save({**found, "model_state": state}, path)
    import_checkpoint(path, tmp_path / "model", ImportCheckpointSettings(backbone=BACKBONE))
    model = VideoTransformerNetwork.from_pretrained(tmp_path / "model")
    features, positions = torch.randn(1, 12, 192), torch.arange(12)[None]
    with torch.inference_mode():
        expected = authors.temporal(features, positions)
        torch.testing.assert_close(model.temporal(features, positions), expected)


@pytest.mark.parametrize(
    ("vtn", "messages"),
    [
        (
            {"NUM_HIDDEN_LAYERS": 3},
            ["temporal_encoder.encoder.layer.2.output.dense.bias is missing"],
        ),
        ({"NUM_HIDDEN_LAYERS": 1}, ["layer.1.output.dense.bias is not in the model"]),
        (
            {"MLP_DIM": 51, "INTERMEDIATE_SIZE": 99},
            [
                "mlp_head.1.weight is [50, 192], the model's is [51, 192]",
                "layer.0.intermediate.dense.weight is [100, 192], the model's is [99, 192]",
            ],
        ),
        ({"NUM_ATTENTION_HEADS": 7}, ["--heads 7"]),
        ({"ATTENTION_WINDOW": [32, 16]}, ["all layers must have the same window"]),
        ({"ATTENTION_WINDOW": 31}, ["--attention-window 31: it must be even"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, authors: AuthorsNetwork, vtn: dict[str, Any], messages: list[str]
) -> None:
    path = write_checkpoint(authors, tmp_path / "a.pyth", **vtn)
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(path, tmp_path / "model")
    for message in messages:
        assert message in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_other_backbones(tmp_path: Path, authors: AuthorsNetwork) -> None:
    path = write_checkpoint(authors, tmp_path / "a.pyth")
    with pytest.raises(CheckpointError, match="does not fit a VTN with the backbone resnet18"):
        import_checkpoint(path, tmp_path / "model", ImportCheckpointSettings(backbone="resnet18"))
    found = torch.load(path, weights_only=True)
    found["model_state"]["backbone.extra"] = torch.zeros(1)
    torch.save(found, path)
    with pytest.raises(CheckpointError, match=r"has the shapes of none of .*; name it with"):
        import_checkpoint(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))


def test_other_files_are_refused(
    tmp_path: Path, authors: AuthorsNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, model = tmp_path / "a.pyth", tmp_path / "model"

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            import_checkpoint(path, model)
        assert not model.exists()

    refused("no such file")
    path.write_bytes(b"text")
    refused("not a safe PyTorch file")
    path.write_bytes(pickle.dumps(_Code()))
    refused("not a safe PyTorch file")
    torch.save({"model_state": _Code(), "cfg": ""}, path)
    refused("not a safe PyTorch file")
    assert not Path("was-run").exists()
    torch.save([1], path)
    refused("contains no model_state with a cfg")
    torch.save({"model_state": {}, "cfg": "a: ["}, path)
    refused("its cfg is not YAML")
    torch.save({"model_state": {}, "cfg": "MODEL: {}"}, path)
    refused("has no section VTN")
    torch.save({"model_state": {}, "cfg": "{VTN: {}, MODEL: [1]}"}, path)
    refused("has no section MODEL")
    torch.save({"model_state": {"cls_token": 1}, "cfg": "VTN: {}"}, path)
    refused("contains other objects than tensors")
    write_checkpoint(authors, path, cfg={"VTN": {"ATTENTION_WINDOW": 32}, "MODEL": {}})
    refused("its cfg lacks 'HIDDEN_DIM'")
    for name, value in {
        "ATTENTION_WINDOW": None,
        "HIDDEN_DROPOUT_PROB": None,
        "MLP_DIM": "50",
        "HIDDEN_DIM": 12_000_000,
    }.items():
        write_checkpoint(authors, path, **{name: value})
        refused("does not fit" if name == "HIDDEN_DIM" else "its cfg: --")


def test_classes_and_folders_are_checked(tmp_path: Path, authors: AuthorsNetwork) -> None:
    path = write_checkpoint(authors, tmp_path / "a.pyth")
    for text in ("a\nb\n", "a\n" * 7, "a\nb\nc\nd\ne\nf\n\n"):
        (tmp_path / "classes.txt").write_text(text)
        settings = ImportCheckpointSettings(classes=str(tmp_path / "classes.txt"))
        with pytest.raises(SettingsError, match="the model has 7 classes"):
            import_checkpoint(path, tmp_path / "model", settings)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/settings.json").write_text("{}")
    with pytest.raises(SettingsError, match="not empty; give a new folder"):
        import_checkpoint(path, tmp_path / "model")
    (tmp_path / "model/settings.json").unlink()
    import_checkpoint(path, tmp_path / "model")
    model = VideoTransformerNetwork.from_pretrained(tmp_path / "model")
    assert model.config.class_names == [str(n) for n in range(7)]
    assert model.config.temporal == replace(CONFIG, position_fps=None)

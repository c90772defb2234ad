"""The specification of an extraction: from the settings, and against a folder's features."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from feature_folders import make_folder
from rich.console import Console
from vtnpipe.extract.create_backbone import build_backbone
from vtnpipe.extract.decode.nvdec import Engines
from vtnpipe.manifests.atomic import sha256_of
from vtnpipe.manifests.errors import BackboneError, FeaturesError, SettingsError
from vtnpipe.manifests.feature_folder import AFTER_RESIZE, FeatureFolder
from vtnpipe.pipelines.extraction import feature_spec
from vtnpipe.pipelines.extraction.feature_spec import (
    NewExtraction,
    package_versions,
    resolve_spec,
    with_model_settings,
)
from vtnpipe.pipelines.extraction.settings import DEFAULT_BACKBONE, ExtractSettings

MEANS: dict[str, Any] = {"backbone": "toy_backbones:block_means", "weights": "none"}
FLOAT32: dict[str, Any] = {**MEANS, "precision": "float32", "feature_dtype": "float32"}
QUIET = Console(quiet=True)


def _resolve(folder: Path, **settings: Any) -> NewExtraction:
    return resolve_spec(FeatureFolder(folder), ExtractSettings(**settings), QUIET)


def test_a_new_folder_has_what_the_settings_say_and_nothing_is_written(tmp_path: Path) -> None:
    new = _resolve(tmp_path / "f", **FLOAT32, device="cpu", views="flip", fps=5.0)
    spec, built = new.extraction.spec, build_backbone(MEANS["backbone"], "none")
    assert (spec.backbone, spec.weights_digest) == (MEANS["backbone"], built.digest)
    assert (spec.precision, spec.feature_dtype, spec.fps) == ("float32", "float32", 5.0)
    assert spec.views == ("center", "flip")
    assert spec.preprocessing == built.preprocessing.to_json()
    assert new.weights == built.weights
    assert new.device == "cpu"
    assert new.extraction.row_shape == (2, 16)
    assert new.extraction.fingerprint == spec.fingerprint
    assert new.extraction.records.keys() == {"settings", "versions"}
    assert _resolve(tmp_path / "f", **FLOAT32).extraction.row_shape == (16,)
    assert list(tmp_path.iterdir()) == []


def test_the_folders_precision_is_taken_and_other_settings_are_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", MEANS["backbone"])
    new = _resolve(tmp_path / "f", **{**FLOAT32, "precision": "auto"})
    assert new.extraction.spec.precision == "float32"
    assert new.weights is None
    for changes, message in [
        ({"backbone": "toy_backbones:mixer"}, "backbone is 'toy_backbones:mixer' here and 'toy_"),
        ({"feature_dtype": "float16"}, "feature_dtype is 'float16' here and 'float32' in the"),
        ({"precision": "float16"}, "precision is 'float16' here and 'float32' in the folder"),
        ({"frame_stride": 2}, "frame_stride is 2 here and 1 in the folder"),
        ({"views": "flip"}, "views is .* here and .* in the folder"),
    ]:
        with pytest.raises(FeaturesError, match=message):
            _resolve(tmp_path / "f", **{**FLOAT32, **changes})
    folder.backbone.unlink()
    with pytest.raises(FeaturesError, match="missing, but its features were computed with it"):
        _resolve(tmp_path / "f", **FLOAT32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Engines]:
    """A GPU with the engines of the list."""
    engines = [Engines(7, ("h264 8",))]
    monkeypatch.setattr(feature_spec, "resolve", lambda device, *_, **__: (device, "float32", ""))
    monkeypatch.setattr(feature_spec, "read_engines", lambda gpu: engines[0])
    return engines


def test_a_new_folder_of_a_gpu_takes_planes_and_engines(tmp_path: Path, gpu: list[Engines]) -> None:
    for decoder, as_planes, num_engines in [
        ("auto", True, 7),
        ("nvdec", True, 7),
        ("pyav", True, 0),
        ("decord", False, 0),
    ]:
        new = _resolve(tmp_path / "f", **FLOAT32, device="cuda", decoder=decoder)
        assert (new.extraction.spec.as_planes, new.num_engines) == (as_planes, num_engines)
    assert not _resolve(tmp_path / "f", **FLOAT32, device="cpu").extraction.spec.as_planes
    gpu[0] = Engines(0, obstacle="libnvcuvid.so.1 is not there; a container needs `video`")
    assert _resolve(tmp_path / "f", **FLOAT32, device="cuda:0").num_engines == 0
    with pytest.raises(SettingsError, match=r"--decoder nvdec: libnvcuvid\.so\.1 is not there"):
        _resolve(tmp_path / "f", **FLOAT32, device="cuda:0", decoder="nvdec")
    with pytest.raises(SettingsError, match="--decoder nvdec: needs a GPU"):
        _resolve(tmp_path / "f", **FLOAT32, device="cpu", decoder="nvdec")


def test_a_folder_keeps_its_color_conversion(tmp_path: Path, gpu: list[Engines]) -> None:
    make_folder(tmp_path / "rgb", MEANS["backbone"])
    make_folder(tmp_path / "planes", MEANS["backbone"], color_conversion=AFTER_RESIZE)
    new = _resolve(tmp_path / "rgb", **FLOAT32, device="cuda:0")
    assert (new.extraction.spec.as_planes, new.num_engines) == (False, 0)
    with pytest.raises(SettingsError, match="converted to RGB before the resize"):
        _resolve(tmp_path / "rgb", **FLOAT32, device="cuda:0", decoder="nvdec")
    assert _resolve(tmp_path / "planes", **FLOAT32, device="cuda:0").num_engines == 7
    assert _resolve(tmp_path / "planes", **FLOAT32, device="cpu").extraction.spec.as_planes
    with pytest.raises(SettingsError, match="--decoder decord: it decodes to RGB"):
        _resolve(tmp_path / "planes", **FLOAT32, device="cpu", decoder="decord")


def test_workers_elsewhere_are_planned_with_engines(tmp_path: Path, gpu: list[Engines]) -> None:
    gpu[0] = Engines(0)
    settings = {**FLOAT32, "device": "cuda", "scheduler": "tcp://127.0.0.1:1"}
    assert _resolve(tmp_path / "f", **settings).num_engines == feature_spec.ASSUMED_ENGINES
    assert _resolve(tmp_path / "f", **settings, decoder="pyav").num_engines == 0


def test_other_weights_are_refused_and_the_same_bytes_are_not(tmp_path: Path) -> None:
    make_folder(tmp_path / "f", MEANS["backbone"])
    same, other = tmp_path / "same.safetensors", tmp_path / "other.safetensors"
    same.write_bytes(build_backbone(MEANS["backbone"], "none").weights)
    other.write_bytes(same.read_bytes()[:-4] + b"\0\0\0\x40")  # the last float32 is 2
    assert _resolve(tmp_path / "f", **{**FLOAT32, "weights": str(same)}).weights is None
    with pytest.raises(FeaturesError, match=r"the weights \(--weights\) differ"):
        _resolve(tmp_path / "f", **{**FLOAT32, "weights": str(other)})
    new = _resolve(tmp_path / "new", **{**FLOAT32, "weights": str(other)})
    assert new.extraction.weights == f"sha256:{sha256_of(other)}"
    with pytest.raises(BackboneError):
        _resolve(tmp_path / "new", **{**FLOAT32, "weights": str(tmp_path / "none")})


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/backbone.safetensors").write_bytes(b"of a run that was killed")
    (tmp_path / "full/.extraction.json.tmp").write_text("")
    _resolve(tmp_path / "full", **FLOAT32)
    (tmp_path / "full/letter.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(FeaturesError, match=f"{name}: is not a feature folder"):
            _resolve(tmp_path / name, **FLOAT32)


def test_workers_elsewhere_need_device_and_precision(tmp_path: Path) -> None:
    for where in ({"cluster": "slurm"}, {"scheduler": "tcp://a:1"}):
        with pytest.raises(SettingsError, match=r"^--device auto: the workers are not on this"):
            _resolve(tmp_path / "f", **MEANS, **where)
        with pytest.raises(SettingsError, match=r"^--precision auto: the workers are not on this"):
            _resolve(tmp_path / "f", **MEANS, **where, device="cuda")
        new = _resolve(tmp_path / "f", **MEANS, **where, device="cuda", precision="float16")
        assert (new.device, new.extraction.spec.precision) == ("cuda", "float16")
    make_folder(tmp_path / "f", MEANS["backbone"])
    settings = {**FLOAT32, "precision": "auto", "cluster": "slurm", "device": "cpu"}
    assert _resolve(tmp_path / "f", **settings).extraction.spec.precision == "float32"


def test_without_a_model_the_backbone_has_a_default() -> None:
    settings = ExtractSettings(weights="none")
    assert with_model_settings(settings, QUIET) == replace(settings, backbone=DEFAULT_BACKBONE)
    settings = ExtractSettings(**MEANS)
    assert with_model_settings(settings, QUIET) == settings


def test_versions_of_missing_packages_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "decord2":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr("vtnpipe.pipelines.extraction.feature_spec.version", version)
    found = package_versions()
    assert (found["torch"], found["decord2"]) == ("1.2", None)

"""The feature folder: feature specification, fingerprint, extraction.json, and locks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_folder import (
    Extraction,
    FeatureFolder,
    FeatureSpec,
    check_spec,
    digest_of,
    read_extraction,
    write_extraction,
)

OLD_FOLDER = FeatureFolder(Path(__file__).parents[1] / "fixtures/v0.1/features")


def _extraction(spec: FeatureSpec, row_shape: tuple[int, ...] = (3,)) -> Extraction:
    return Extraction(spec=spec, fingerprint=spec.fingerprint, row_shape=row_shape, weights="none")


def test_a_digest_follows_values_and_not_their_order() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_every_field_of_a_specification_changes_its_fingerprint() -> None:
    spec = FeatureSpec(backbone="a")
    changes: dict[str, Any] = {
        "backbone": "b",
        "weights_digest": "0" * 64,
        "preprocessing": {"crop_pct": 0.9},
        "precision": "bfloat16",
        "feature_dtype": "float16",
        "fps": 5.0,
        "frame_stride": 2,
        "views": ("center", "flip"),
        "pool": "avg",
        "image_size": 96,
        "color_conversion": "after-resize",
    }
    others = [replace(spec, **{name: value}) for name, value in changes.items()]
    assert len({spec.fingerprint, *(one.fingerprint for one in others)}) == len(changes) + 1
    for name, other in zip(changes, others, strict=True):
        is_known = getattr(spec, name) not in ("", {})
        assert bool(spec.differences(other)) == is_known, name
        assert spec.differences(other, ignore=frozenset({name})) == []


def test_an_extraction_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path)
    spec = FeatureSpec(
        backbone="a",
        weights_digest="0" * 64,
        preprocessing={"mean": [0.5], "crop_pct": 0.9},
        precision="float32",
        feature_dtype="float16",
        fps=5.0,
        views=("center", "flip"),
        pool="avg",
    )
    written = replace(
        _extraction(spec, (2, 3)), records={"settings": {"device": "cpu"}, "versions": {"av": "1"}}
    )
    write_extraction(folder, written)
    assert read_extraction(folder) == written
    assert written.bytes_per_frame == 12


def test_another_specification_is_refused_with_both_values(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path)
    spec = FeatureSpec(backbone="a", feature_dtype="float16", weights_digest="0" * 64)
    write_extraction(folder, _extraction(spec))
    check_spec(folder, spec)
    check_spec(folder, FeatureSpec(backbone="a"))  # what is not known yet matches anything
    with pytest.raises(FeaturesError, match="backbone is 'b' here and 'a' in the folder"):
        check_spec(folder, replace(spec, backbone="b"))
    with pytest.raises(FeaturesError, match=r"weights \(--weights\) differ"):
        check_spec(folder, replace(spec, weights_digest="1" * 64))


def test_a_folder_of_version_1_still_opens() -> None:
    found = read_extraction(OLD_FOLDER)
    assert found.spec.views == ("center", "flip")
    assert (found.spec.feature_dtype, found.spec.frame_stride) == ("float32", 2)
    assert (found.spec.backbone, found.spec.fps) == ("toy_backbones:block_means", None)
    assert found.spec.preprocessing["input_size"] == [3, 64, 64]
    assert found.row_shape == (2, 16)
    assert found.weights == "none"
    assert found.fingerprint == json.loads(OLD_FOLDER.extraction.read_text())["fingerprint"]
    assert found.records["versions"]["vtnpipe"] == "0.1.0"


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"format": "vtnpipe.extraction", "version": 2}'),
        '{"format": "vtnpipe.extraction", "version": 1}',
        '{"format": "vtnpipe.extraction", "version": 3}',
        '{"format": "another"}',
    ],
)
def test_a_damaged_extraction_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "extraction.json").write_text(text)
    with pytest.raises(FeaturesError, match=r"extraction\.json"):
        read_extraction(FeatureFolder(tmp_path))


def test_an_edited_specification_is_refused(tmp_path: Path) -> None:
    folder = FeatureFolder(tmp_path)
    write_extraction(folder, _extraction(FeatureSpec(backbone="a")))
    folder.extraction.write_text(folder.extraction.read_text().replace('"a"', '"b"'))
    with pytest.raises(FeaturesError, match=r"extraction\.json: its fingerprint does not match"):
        read_extraction(folder)

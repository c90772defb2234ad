"""Verification: every kind of fault that opening a folder does not see."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from made_up_shards import video_part, write_parts
from vtnpipe.manifests.feature_folder import FeatureFolder, read_extraction
from vtnpipe.manifests.plan import Computation, PlannedRow, Task, read_plans
from vtnpipe.manifests.shards import checksum
from vtnpipe.manifests.verify import Fault, backbone_faults, shard_faults

OLD_FOLDER = FeatureFolder(Path(__file__).parents[1] / "fixtures/v0.1/features")


def _task(*video_ids: str) -> Task:
    rows = tuple(PlannedRow(name, f"/{name}.mp4", None, None, 1, 1) for name in video_ids)
    return Task(name="000-00000", rows=rows, computation=Computation(8))


def _faults(folder: FeatureFolder, path: Path, *tasks: Task) -> list[Fault]:
    named = {task.name: task for task in tasks}
    return list(shard_faults(path, read_extraction(folder), named))


@pytest.fixture
def shard(folder: FeatureFolder) -> Path:
    failed = video_part("w", 0, reason="missing")
    return write_parts(folder, "000-00000", video_part("v", 4), failed)


TASK = _task("v", "w")


def test_a_sound_shard_has_no_faults(folder: FeatureFolder, shard: Path) -> None:
    assert _faults(folder, shard, TASK) == []


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("features", 2, np.inf, "a feature is not finite"),
        ("timestamps", 3, np.nan, "a timestamp is not finite"),
        ("timestamps", 3, 9.0, "its fps is"),
        ("frame_index", 2, 1, "frame_index is not strictly increasing"),
        ("frame_index", 0, -1, "frame_index is not strictly increasing"),
        ("videos/status", 0, b"failed", "its status is 'failed', with 4 frames"),
    ],
)
def test_values_that_can_not_be_are_faults(
    folder: FeatureFolder, shard: Path, name: str, row: int, value: Any, message: str
) -> None:
    with h5py.File(shard, "r+") as file:
        file[name][row] = value
        arrays = (file[name][:] for name in ("features", "frame_index", "timestamps"))
        file["videos/crc32"][0] = checksum(*arrays)
    faults = _faults(folder, shard, TASK)
    assert any(message in fault.message for fault in faults), faults
    assert all(fault.is_damage and "'v'" in fault.message for fault in faults)


def test_a_flipped_bit_anywhere_in_the_rows_is_found(folder: FeatureFolder, shard: Path) -> None:
    with h5py.File(shard) as file:
        places = {
            name: file[name].id.get_offset() + file[name].nbytes // 2
            for name in ("features", "frame_index", "timestamps")
        }
    sound = shard.read_bytes()
    for place in places.values():
        data = bytearray(sound)
        data[place] ^= 1
        shard.write_bytes(data)
        (fault,) = _faults(folder, shard, TASK)
        assert "checksum is wrong" in fault.message
        assert fault.is_damage
    shard.write_bytes(sound[:-200])
    (fault,) = _faults(folder, shard, TASK)
    assert fault.is_damage


def test_a_shard_must_be_that_of_its_task(folder: FeatureFolder, shard: Path) -> None:
    (fault,) = _faults(folder, shard)
    assert "in no plan" in fault.message
    assert not fault.is_damage  # it is not written again: it may be somebody's
    (fault,) = _faults(folder, shard, _task("w", "v"))
    assert "not those of its task" in fault.message
    assert fault.is_damage


def test_changed_weights_are_a_fault(tmp_path: Path) -> None:
    folder, extraction = FeatureFolder(tmp_path), read_extraction(OLD_FOLDER)
    (message,) = backbone_faults(folder, extraction)
    assert "cannot read" in message
    data = OLD_FOLDER.backbone.read_bytes()
    folder.backbone.write_bytes(data)
    assert list(backbone_faults(folder, extraction)) == []
    folder.backbone.write_bytes(data[:-1] + b"\1")
    (message,) = backbone_faults(folder, extraction)
    assert "its SHA-256 is not" in message


def test_a_folder_of_version_0_1_is_sound() -> None:
    extraction = read_extraction(OLD_FOLDER)
    tasks = read_plans(OLD_FOLDER, extraction.fingerprint)
    assert [task.computation for task in tasks] == [Computation(8)]
    for task in tasks:
        assert _faults(OLD_FOLDER, task.shard(OLD_FOLDER), task) == []
    assert list(backbone_faults(OLD_FOLDER, extraction)) == []

"""Shards: the layout on disk, whole or absent, and refusals of what is no shard."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from made_up_shards import DIM, video_part, write_parts
from vtnpipe.manifests.errors import DamagedShardError, FeaturesError
from vtnpipe.manifests.feature_folder import FeatureFolder, read_extraction
from vtnpipe.manifests.shards import checksum, read_shard


def test_layout_is_the_documented_one(folder: FeatureFolder) -> None:
    path = write_parts(folder, "000-00000", video_part("v1", 2), video_part("v2", 3))
    with h5py.File(path) as file:
        assert file.attrs["format"] == "vtnpipe.features"
        assert file.attrs["version"] == 1
        assert file["features"].shape == (5, DIM)
        assert file["features"].chunks is None
        assert file["frame_index"].dtype == np.int64
        assert file["timestamps"].dtype == np.float64
        assert file["videos/offset"][:].tolist() == [0, 2]
        assert file["videos/length"][:].tolist() == [2, 3]
        assert [v.decode() for v in file["videos/id"][:]] == ["v1", "v2"]
        assert not any(column.dtype.hasobject for column in file["videos"].values())


def test_the_table_comes_back_as_it_was(folder: FeatureFolder) -> None:
    part = video_part(
        *("ünï/../x", 3),
        first=4,
        status="partial",
        reason="damaged",
        message="2 lost",
        num_lost_frames=2,
        decoder="pyav",
        decoder_reason="container avi",
        part=1,
        num_parts=2,
    )
    path = write_parts(folder, "012-00345", video_part("v1", 2), part)
    shard = read_shard(path, read_extraction(folder).fingerprint)
    assert (shard.plan, shard.row_shape, shard.dtype) == (12, (DIM,), np.float16)
    entry = shard.entries[1]
    assert (entry.offset, entry.length, entry.first_frame) == (2, 3, 4)
    assert entry.fps == pytest.approx(30)
    assert entry.crc32 == checksum(part.features, part.frame_index, part.timestamps)
    for name in ("status", "reason", "message", "num_lost_frames", "part", "num_parts"):
        assert getattr(entry, name) == getattr(part, name)
    assert (entry.id, entry.decoder, entry.decoder_reason) == (
        *("ünï/../x", "pyav"),
        "container avi",
    )


def test_nothing_is_left_of_a_writer_that_fails(folder: FeatureFolder) -> None:
    bad = video_part("v", 2)
    object.__setattr__(bad, "features", np.zeros((2, DIM + 1)))
    with pytest.raises((TypeError, ValueError)):
        write_parts(folder, "000-00000", bad)
    assert list(folder.shards.iterdir()) == []


def _damage(name: str, path: Path) -> None:
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if name == "not HDF5":
        path.write_bytes(b"something else")
        return
    with h5py.File(path, "r+") as file:
        if name == "version":
            file.attrs["version"] = 99
        elif name == "fingerprint":
            file.attrs["fingerprint"] = "other"
        elif name == "table":
            file["videos/length"][0] = 1
        elif name == "external link":
            del file["features"]
            file["features"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif name == "soft link":
            del file["timestamps"]
            file["timestamps"] = h5py.SoftLink("/frame_index")
        elif name == "external storage":
            shape = file["features"].shape
            del file["features"]
            storage = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("features", shape, "float16", external=storage)
        elif name == "virtual":
            layout = h5py.VirtualLayout(file["features"].shape, "float16")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=layout.shape)
            del file["features"]
            file.create_virtual_dataset("features", layout)
        elif name == "chunked":
            data = file["features"][:]
            del file["features"]
            file.create_dataset("features", data=data, chunks=(1, DIM))
        elif name == "claims terabytes":
            del file["features"]
            file.create_dataset("features", (2**40, DIM), "float16")
        elif name == "object dtype":
            del file["videos/id"]
            file.create_dataset("videos/id", data=["v1", "v2"], dtype=h5py.string_dtype())
        else:
            raise AssertionError(name)


FOREIGN = ("version", "fingerprint")


@pytest.mark.parametrize(
    "damage",
    [
        *(*FOREIGN, "truncated", "not HDF5", "table", "external link"),
        *("soft link", "external storage", "virtual", "chunked", "claims terabytes"),
        "object dtype",
    ],
)
def test_refuses_what_is_no_shard_of_this_folder(folder: FeatureFolder, damage: str) -> None:
    path = write_parts(folder, "000-00000", video_part("v1", 2), video_part("v2", 3))
    _damage(damage, path)
    with pytest.raises(FeaturesError, match=r"000-00000\.h5") as caught:
        read_shard(path, read_extraction(folder).fingerprint)
    # Only what is damaged may be removed and written again.
    assert isinstance(caught.value, DamagedShardError) == (damage not in FOREIGN)


def test_refuses_a_shard_by_another_name(folder: FeatureFolder) -> None:
    path = write_parts(folder, "000-00000", video_part("v1", 2))
    with pytest.raises(FeaturesError, match="not named PPP-TTTTT"):
        read_shard(path.rename(folder.shards / "extra.h5"), "any")

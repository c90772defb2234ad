"""Stage one on a GPU: the same features as on a CPU, without staging copies, compiled or not."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import extract_rows, make_folder, write_backbone
from numbered_videos import CLIP_LENGTHS, write_video
from PIL import Image
from vtnpipe.extract.backbone import load_backbone
from vtnpipe.extract.batching import Batcher
from vtnpipe.extract.decode.nvdec import read_engines
from vtnpipe.extract.decode.protocol import Chunk
from vtnpipe.extract.task import release_worker
from vtnpipe.manifests.feature_folder import AFTER_RESIZE
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import with_file_state

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() and not os.environ.get("VTNPIPE_REQUIRE_CUDA"),
        reason="no GPU",
    ),
]


@pytest.fixture
def images() -> np.ndarray:
    """Smooth images, [4, 240, 320, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 9, 12, 3), dtype=np.uint8)
    return np.stack([np.array(Image.fromarray(one).resize((320, 240))) for one in coarse])


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "vit_tiny_patch16_224"])
def test_features_are_those_of_a_cpu(tmp_path: Path, images: np.ndarray, name: str) -> None:
    path, spec = write_backbone(tmp_path, name)
    on_cpu, on_gpu = (load_backbone(path, spec, device) for device in ("cpu", "cuda:0"))
    views = on_gpu.transform(images).cpu()
    assert (views.int() - on_cpu.transform(images).int()).abs().max() <= 2
    expected = on_cpu.features(on_cpu.transform(images))
    pending = on_gpu.start(on_gpu.transform(images))
    found = pending.wait()
    assert pending.seconds > 0  # by the GPU's clock
    assert torch.cosine_similarity(found[:, 0], expected[:, 0]).min() >= 0.9999
    compiled = load_backbone(path, spec, "cuda:0", compiled_batch_size=8)
    again = compiled.features(compiled.transform(images))  # padded to 8
    assert torch.cosine_similarity(again[:, 0], found[:, 0]).min() >= 0.9999


@pytest.mark.skipif(
    torch.cuda.is_available()
    and not read_engines(0).num_engines
    and not os.environ.get("VTNPIPE_REQUIRE_CUDA"),
    reason="no video engines",
)
def test_the_engines_change_no_bit(tmp_path: Path, rows: list[VideoRow]) -> None:
    paths = [
        write_video(tmp_path / "a.mp4", 300, height=240, width=320),
        write_video(tmp_path / "b.mkv", 200, height=240, width=320, codec="libx265"),
        write_video(tmp_path / "c.webm", 100, height=480, width=640, codec="libvpx-vp9"),
        write_video(tmp_path / "d.mp4", 100, height=180, width=318, rotation=90),
    ]
    planned = [
        with_file_state(VideoRow(video_id=path.name, path=str(path)))._replace(
            num_frames=100, may_use_nvdec=True
        )
        for path in paths
    ]
    stores = []
    for number, share in enumerate((1.0, 0.0)):
        folder = make_folder(tmp_path / str(number), "test_vit", color_conversion=AFTER_RESIZE)
        extract_rows(
            folder,
            planned,
            lane_frames=100,
            nvdec_share=share,
            num_decoder_processes=3,
            device="cuda:0",
            engines="cuda:0",
        )
        release_worker()
        stores.append(open_features(folder.root))
    by_nvdec, by_cpu = stores
    for name in by_cpu:
        entry = by_nvdec.entries[name][0]
        assert (entry.decoder, entry.decoder_reason) == ("nvdec", "")
        assert by_cpu[name].decoder == "pyav"
        np.testing.assert_array_equal(by_nvdec[name].features, by_cpu[name].features)
        np.testing.assert_array_equal(by_nvdec[name].timestamps, by_cpu[name].timestamps)


def test_a_task_gives_the_same_bits_without_staging_copies(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = write_video(tmp_path / "long.mp4", 500, height=240, width=320)
    planned = [
        with_file_state(row)._replace(num_frames=length)
        for row, length in zip(rows, CLIP_LENGTHS.values(), strict=True)
    ]
    long_row = with_file_state(VideoRow(video_id="long", path=str(long)))
    planned.append(long_row._replace(num_frames=500))
    is_pinned: list[bool] = []
    prepare = Batcher.prepare

    def noting(batcher: Batcher, chunk: Chunk) -> Any:
        is_pinned.append(chunk.is_pinned)
        return prepare(batcher, chunk)

    monkeypatch.setattr(Batcher, "prepare", noting)
    stores = []
    for number, device in enumerate(("cuda:0", "cuda:0", "cpu")):
        folder = make_folder(tmp_path / str(number), "test_vit")
        extract_rows(folder, planned, lane_frames=100, num_decoder_processes=3, device=device)
        stores.append(open_features(folder.root))
    release_worker()
    assert any(is_pinned)
    for name in stores[0]:
        first, again, on_cpu = (torch.from_numpy(store[name].features) for store in stores)
        assert torch.equal(first, again)
        assert torch.cosine_similarity(first, on_cpu).min() >= 0.999

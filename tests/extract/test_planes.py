"""Planes: read as a codec leaves them, and converted after the resize as FFmpeg converts before."""

from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numbered_videos import read_number, write_video
from read_videos import read_video
from vtnpipe.extract.backbone import evaluation_transform
from vtnpipe.extract.decode.frame_format import (
    FULL_RANGE,
    FrameFormat,
    Orientation,
    PlaneReader,
    write_planes,
)
from vtnpipe.extract.decode.frames import SoftwareFrames, read_frames, select_frames
from vtnpipe.extract.decode.packets import RgbConverter
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.nvdec_process import format_and_planes
from vtnpipe.extract.planes import PlaneResize, rgb_matrix, split
from vtnpipe.extract.preprocessing import Preprocessing

UPRIGHT = Orientation(False, False, False)
SPACES = {"bt709": 1, "bt601": 5, "not declared": 2, "bt2020": 9}


def _smooth(size: tuple[int, int], low: float, high: float, seed: int) -> np.ndarray:
    """A smooth plane of values from `low` to `high`."""
    torch.manual_seed(seed)
    coarse = torch.rand(1, 1, size[0] // 16 + 2, size[1] // 16 + 2)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return low + (high - low) * fine[0, 0].numpy()


def _frame(name: str, color_space: int = 5, color_range: int = 1, size: Any = (240, 320)) -> Any:
    """A PyAV frame of smooth planes within the legal range, so that nothing is clipped."""
    height, width = size
    is_deep = name.endswith("10le")
    scale, dtype = (4, np.dtype("<u2")) if is_deep else (1, np.dtype(np.uint8))
    chroma = (-(-height // 2), -(-width // 2))
    planes = [
        _smooth((height, width), 60 * scale, 190 * scale, 0),
        _smooth(chroma, 100 * scale, 156 * scale, 1),
        _smooth(chroma, 100 * scale, 156 * scale, 2),
    ]
    frame = av.VideoFrame(width, height, name)
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((len(values), plane.line_size), np.uint8)
        data = values.round().astype(dtype).view(np.uint8).reshape(len(values), -1)
        rows[:, : data.shape[1]] = data
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = color_space, color_range
    return frame


def _data(frame: Any, orientation: Orientation = UPRIGHT) -> tuple[torch.Tensor, FrameFormat]:
    """A frame's planes as they lie in a slot, [1, num_bytes], and its format."""
    found = PlaneReader(orientation)(frame)
    assert found is not None
    layout, planes = found
    memory = np.zeros(layout.num_bytes, np.uint8)
    write_planes(planes, memory)
    return torch.from_numpy(memory)[None], layout


# FFmpeg's conversion truncates where this one rounds: at 8 bits, that is all of the difference.
@pytest.mark.parametrize(
    ("name", "mean", "largest"),
    [("yuv420p", 0.5, 2), ("yuvj420p", 0.5, 2), ("yuv420p10le", 0.9, 7)],
)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("color_range", [1, FULL_RANGE])
def test_colors_are_those_of_ffmpegs_scaler(
    name: str, mean: float, largest: int, space: str, color_range: int
) -> None:
    frame = _frame(name, SPACES[space], color_range)
    data, layout = _data(frame)
    assert layout.is_full_range == (name == "yuvj420p" or color_range == FULL_RANGE)
    same_size = PlaneResize(lambda height, width: (height, width), "bicubic", torch.float32)
    found = same_size(data, layout)[0].permute(1, 2, 0).int()
    expected = torch.from_numpy(RgbConverter("x")(frame)).int()
    difference = (found - expected).abs()
    assert float(difference.float().mean()) <= mean
    assert int(difference.max()) <= largest


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize(("is_full_range", "num_bits"), list(product([False, True], [8, 10])))
def test_the_color_matrix_inverts_its_definition(
    matrix: Any, is_full_range: bool, num_bits: int
) -> None:
    """Y = Kr R + Kg G + Kb B; Cb = (B - Y) / (2 - 2 Kb); Cr = (R - Y) / (2 - 2 Kr)."""
    shares = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
    red, blue = shares[matrix]
    rgb = torch.rand(3, 50, dtype=torch.float64)
    luma = torch.tensor([red, 1 - red - blue, blue], dtype=torch.float64) @ rgb
    cb, cr = (rgb[2] - luma) / (2 - 2 * blue), (rgb[0] - luma) / (2 - 2 * red)
    step = 2 ** (num_bits - 8)
    if is_full_range:
        most = 2**num_bits - 1
        coded = torch.stack([most * luma, most * cb + 128 * step, most * cr + 128 * step])
    else:
        coded = step * torch.stack([219 * luma + 16, 224 * cb + 128, 224 * cr + 128])
    weights, bias = rgb_matrix(FrameFormat(2, 2, num_bits, matrix, is_full_range))
    found = weights.double() @ coded + bias.double()[:, None]
    torch.testing.assert_close(found, 255 * rgb, atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(240, 320), (321, 243), (96, 500), (32, 32)])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"interpolation": "bilinear", "crop_pct": 0.875},
        {"crop_mode": "squash"},
        {"style": "pyslowfast", "interpolation": "bilinear", "crop_pct": 0.875},
    ],
    ids=str,
)
def test_a_resize_of_planes_is_that_of_images(
    preprocessing: Preprocessing, size: tuple[int, int], change: dict[str, Any]
) -> None:
    values = {**preprocessing.to_json(), **change}
    transform = evaluation_transform(Preprocessing.from_json(values), "cpu", ("center", "flip"))
    frame = _frame("yuv420p", size=size)
    data, layout = _data(frame)
    found = transform.resize(data, layout)
    expected = transform(RgbConverter("x")(frame)[None])
    assert found.shape == expected.shape
    difference = (found.int() - expected.int()).abs().float()
    is_odd = size[0] % 2 == 1  # for which FFmpeg's scaler takes another way
    assert float(difference.mean()) <= (1.4 if is_odd else 0.6)
    assert int(difference.max()) <= (7 if is_odd else 3)


def test_what_planes_cannot_be_resized_by_stays_rgb(preprocessing: Preprocessing) -> None:
    for change in ({"interpolation": "lanczos"}, {"crop_mode": "border"}):
        values = {**preprocessing.to_json(), **change}
        transform = evaluation_transform(Preprocessing.from_json(values), "cpu")
        assert transform.planes is None, change


@pytest.mark.parametrize(
    "orientation", [Orientation(*one) for one in product([False, True], repeat=3)]
)
def test_planes_are_turned_as_images_are(
    preprocessing: Preprocessing, orientation: Orientation
) -> None:
    transform = evaluation_transform(preprocessing, "cpu")
    frame = _frame("yuv420p", size=(96, 160))
    data, layout = _data(frame, orientation)
    image = np.ascontiguousarray(orientation.apply(RgbConverter("x")(frame)))
    assert layout.upright_size == image.shape[:2]
    difference = (transform.resize(data, layout).int() - transform(image[None]).int()).abs()
    assert float(difference.float().mean()) <= 0.6
    assert int(difference.max()) <= 3


@pytest.mark.parametrize("name", ["yuv420p", "yuv420p10le"])
def test_interleaved_planes_of_a_gpu_are_those_of_a_cpu(name: str) -> None:
    """NV12 and P010, whose values are in the upper 10 of 16 bits."""
    frame = _frame(name, color_space=1)
    data, layout = _data(frame)
    luma, chroma = split(data, layout)
    luma, chroma = luma[0, 0], chroma[0].permute(1, 2, 0).contiguous()
    if name == "yuv420p10le":
        luma, chroma = ((one << 6).view(torch.uint16) for one in (luma, chroma))
    found, planes = format_and_planes(frame, luma, chroma, UPRIGHT)
    assert found == layout
    for ours, theirs in zip(planes, split(data, layout), strict=True):
        assert torch.equal(ours, theirs[0].view(ours.shape))


def test_frames_of_a_video_are_read_as_planes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 30, height=72, width=100)  # rows are padded
    info = probe(str(path))
    same_size = PlaneResize(lambda height, width: (height, width), "bicubic", torch.float32)
    numbers = []
    for frame in read_frames(select_frames(str(path)), source=SoftwareFrames(info, as_planes=True)):
        assert frame.format == FrameFormat(72, 100, 8, "bt601", False, UPRIGHT)
        assert [plane.shape for plane in frame.planes] == [(72, 100), (36, 50), (36, 50)]
        memory = np.zeros(frame.format.num_bytes, np.uint8)
        write_planes(frame.planes, memory)
        image = same_size(torch.from_numpy(memory)[None], frame.format)[0]
        numbers.append(read_number(image.permute(1, 2, 0).numpy()))
    assert numbers == list(range(30))


def test_other_planes_are_converted_to_rgb(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.gif", 3, codec="gif")
    info = probe(str(path))
    frames, _ = read_video(path, source=SoftwareFrames(info, as_planes=True))
    assert all(frame.format == FrameFormat(64, 128) for frame in frames)
    assert [read_number(frame.image) for frame in frames] == [0, 1, 2]
    assert PlaneReader(UPRIGHT)(av.VideoFrame(64, 64, "yuv444p")) is None
    frame = av.VideoFrame(64, 64, "yuv420p")
    frame.colorspace = 7  # SMPTE 240M
    assert PlaneReader(UPRIGHT)(frame) is None

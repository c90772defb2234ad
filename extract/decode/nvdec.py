"""NVDEC, the video engines of an NVIDIA GPU: the files that they may decode, and what a GPU has.

Only codecs whose decoders must agree bit for bit are decoded there: H.264, HEVC, VP8 and VP9. Their
profile, chroma and size are for the driver to accept or refuse, when FFmpeg opens the decoder.
"""

import ctypes
from typing import NamedTuple

from ...manifests.errors import counted
from .cuda_driver import CudaError, check, driver
from .frame_format import MATRICES, PLANAR_FORMATS
from .probe import VideoInfo

# By FFmpeg's name of a codec: its number in NVIDIA's cuviddec.h (cudaVideoCodec).
CODECS = {"h264": 4, "hevc": 8, "vp8": 9, "vp9": 10}
DEEP_CODECS = ("hevc", "vp9")  # also of 10 bits
CHROMA_420 = 1  # cudaVideoChromaFormat
LIBRARY = "libnvcuvid.so.1"


class NvdecFaultError(Exception):
    """The CPU must decode a file, as the engines refuse it or gave other frames than its packets'.

    Frames that they gave are void.
    """


def nvdec_refusal(info: VideoInfo) -> str:
    """Return the first rule by which the CPU decodes a file; empty if the engines may try."""
    if info.first_frame is None:
        return "its packets decode to no frame"
    color_space = int(info.first_frame.colorspace)
    reasons = (
        format_refusal(info.codec, info.first_frame.format.name, info.width, info.height),
        "" if color_space in MATRICES else f"color space {color_space}",
        info.count_reason,
        ", ".join(info.oddities),
        "the file ends before its index" if info.num_beyond_end else "",
    )
    return next(filter(None, reasons), "")


def format_refusal(codec: str, pixel_format: str, width: int, height: int) -> str:
    """Return why the engines may not decode a format; empty if they may.

    Args:
        codec: FFmpeg's name of the codec.
        pixel_format: FFmpeg's name of the frames' format on the CPU.
        width: width of a frame.
        height: height of a frame.

    >>> format_refusal("av1", "yuv420p", 320, 240), format_refusal("hevc", "yuv420p10le", 320, 240)
    ('codec av1', '')
    """
    if codec not in CODECS:
        return f"codec {codec}"
    num_bits = PLANAR_FORMATS.get(pixel_format)
    if num_bits is None or (num_bits > 8 and codec not in DEEP_CODECS):
        return f"{codec} with pixel format {pixel_format}"
    if width % 2 or height % 2:
        return f"an odd size, {width}x{height}"
    return ""


class Engines(NamedTuple):
    """Video engines of a GPU.

    Attributes:
        num_engines: number of engines, by the driver; 0 if there are none.
        codecs: codecs that they decode at 4:2:0, with bits: `h264 8`.
        obstacle: why there are none, and what to do.
    """

    num_engines: int
    codecs: tuple[str, ...] = ()
    obstacle: str = ""


class _DecoderCaps(ctypes.Structure):
    """CUVIDDECODECAPS of NVIDIA's cuviddec.h."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("num_engines", ctypes.c_ubyte),
        ("output_formats", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("has_histogram", ctypes.c_ubyte),
        ("counter_bits", ctypes.c_ubyte),
        ("max_bins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    )


def read_engines(gpu: int) -> Engines:
    """Ask the driver for the video engines of a GPU, in its primary CUDA context."""
    try:
        cuda = driver()
    except CudaError as error:
        return Engines(0, obstacle=str(error))
    try:
        cuvid = ctypes.CDLL(LIBRARY)
    except OSError:
        return Engines(
            0,
            obstacle=f"{LIBRARY} is not there; a container needs the driver capability `video` "
            "(NVIDIA_DRIVER_CAPABILITIES=compute,utility,video)",
        )
    device, context = ctypes.c_int(), ctypes.c_void_p()
    try:
        check(cuda.cuInit(0), "starting CUDA")
        check(cuda.cuDeviceGet(ctypes.byref(device), gpu), f"finding GPU {gpu}")
        check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), f"using GPU {gpu}")
        check(cuda.cuCtxPushCurrent_v2(context), f"using GPU {gpu}")
    except CudaError as error:
        return Engines(0, obstacle=str(error))
    try:
        return _engines(cuvid)
    finally:
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def _engines(cuvid: ctypes.CDLL) -> Engines:
    """Return what cuvidGetDecoderCaps says in the present context."""
    num_engines, codecs = 0, []
    for name, number in CODECS.items():
        for num_bits in (8, 10):
            if num_bits > 8 and name not in DEEP_CODECS:
                continue
            caps = _DecoderCaps(codec=number, chroma=CHROMA_420, bit_depth_minus_8=num_bits - 8)
            if not cuvid.cuvidGetDecoderCaps(ctypes.byref(caps)) and caps.is_supported:
                num_engines = max(num_engines, caps.num_engines, 1)
                codecs.append(f"{name} {num_bits}")
    obstacle = "" if num_engines else f"the GPU decodes none of {', '.join(CODECS)}"
    return Engines(num_engines, tuple(codecs), obstacle)


def describe(engines: Engines) -> str:
    """Return the engines in words."""
    if not engines.num_engines:
        return f"no video engines: {engines.obstacle}"
    return f"{counted(engines.num_engines, 'video engine')}: {', '.join(engines.codecs)} bits"

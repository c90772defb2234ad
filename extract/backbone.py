"""The frozen image backbone on a device: images in, one feature vector per image out."""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.transforms import Resize, v2

from ..manifests.errors import BackboneError
from ..manifests.feature_folder import FeatureSpec
from .create_backbone import create_module, timm_steps
from .planes import PlaneResize, output_size
from .preprocessing import (
    CropOrPad,
    MatrixResize,
    Preprocessing,
    PySlowFastResize,
    Transform,
    pyslowfast_crop,
)

MIN_CONVOLUTIONS = 2  # for channels-last memory; a ViT has one, its patch embedding


class _Computed(NamedTuple):
    """Features of a batch, and how long they took; on a GPU, both once `end` has completed."""

    features: Tensor  # [N, V, D] float32 on the CPU
    seconds: float
    begin: torch.cuda.Event | None = None
    end: torch.cuda.Event | None = None


class PendingFeatures:
    """Features of a batch that is being computed.

    Attributes:
        seconds: time that the device spent on the batch; 0 before `wait` has returned.
    """

    def __init__(self, future: "Future[_Computed]") -> None:
        self.seconds = 0.0
        self._future = future

    def wait(self) -> Tensor:
        """Return the features [N, V, D], float32 on the CPU, when they are computed."""
        features, self.seconds, begin, end = self._future.result()
        if begin is not None and end is not None:
            end.synchronize()
            self.seconds = begin.elapsed_time(end) / 1000  # milliseconds
        return features


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A module [N, 3, H, W] → [N, D] with its transform, on a device.

    Batches are computed in threads of its own, while others are prepared: in one, or on a CPU in as
    many as there are threads to compute with, each by one thread alone. That is faster than all of
    them on one batch, and the same bits for any number.

    Attributes:
        module: frozen module in eval mode.
        transform: converts frames to its input.
        dtype: dtype of weights and activations.
        channels_last: whether its input is in channels-last memory.
        fixed_size: batch size of a compiled module; smaller batches are padded.
        num_threads: number of batches that are computed at the same time.
    """

    module: Callable[[Tensor], Tensor]
    transform: Transform
    dtype: torch.dtype
    channels_last: bool = False
    fixed_size: int | None = None
    num_threads: int = 1

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        initializer = partial(torch.set_num_threads, 1) if self.num_threads > 1 else None
        return ThreadPoolExecutor(self.num_threads, "backbone", initializer)

    def start(self, images: Tensor) -> PendingFeatures:
        """Begin to compute the features of images, under the caller's autocast.

        Args:
            images: [N, V, 3, h, w] uint8, from `transform.resize`.
        """
        device_type = self.transform.device.type
        autocast = torch.autocast(
            device_type,
            torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
        )
        return PendingFeatures(self._threads.submit(self._compute, images, autocast))

    def features(self, images: Tensor) -> Tensor:
        """Return the features [N, V, D], float32 on the CPU, of images as `start` takes them."""
        return self.start(images).wait()

    @torch.inference_mode()
    def _compute(self, images: Tensor, autocast: torch.autocast) -> _Computed:
        num_frames, num_views = images.shape[:2]
        device, start = self.transform.device, time.perf_counter()
        begin = None if device.type == "cpu" else _recorded_event(device)
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        inputs = self.transform.normalize(images.flatten(0, 1))
        inputs = inputs.to(self.dtype, memory_format=order)
        if self.fixed_size is not None and len(inputs) < self.fixed_size:
            padding = inputs[:1].expand(self.fixed_size - len(inputs), -1, -1, -1)
            inputs = torch.cat((inputs, padding))
        with autocast:
            outputs = self.module(inputs)[: num_frames * num_views].to(torch.float32)
        features = outputs.to("cpu", non_blocking=True).unflatten(0, (num_frames, num_views))
        if begin is not None:
            return _Computed(features, 0.0, begin, _recorded_event(device))
        return _Computed(features, time.perf_counter() - start)


def _recorded_event(device: torch.device) -> torch.cuda.Event:
    """Return an event in the device's current stream that measures time."""
    event = torch.cuda.Event(enable_timing=True, blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event


def evaluation_transform(
    preprocessing: Preprocessing, device: str, views: Sequence[str] = ("center",)
) -> Transform:
    """Return the evaluation transform up to the conversion to float, for batches of uint8.

    Raises:
        BackboneError: its crop leaves nothing for other views.
    """
    if "left" in views and preprocessing.crop_mode != "center":
        raise BackboneError(
            f"--views three-crop: the backbone's preprocessing has crop mode "
            f"{preprocessing.crop_mode!r}, which leaves nothing beside the center; give "
            "--views flip"
        )
    if preprocessing.style == "pyslowfast":
        height, width = preprocessing.input_size[1:]
        steps: list[Any] = [PySlowFastResize(round(height / preprocessing.crop_pct))]
        crop: Any = pyslowfast_crop((height, width))
    else:
        *steps, crop, _, _ = timm_steps(preprocessing)
        if preprocessing.crop_mode == "border":
            fill = crop.fill if isinstance(crop.fill, (tuple, list)) else (crop.fill,) * 3
            crop = CropOrPad(crop.size, fill)
    return Transform(
        preprocessing=preprocessing,
        resize_steps=[_fast_resize(step, device) for step in steps],
        crop=crop,
        views=tuple(views),
        device=torch.device(device),
        planes=_plane_resize(steps, device),
    )


def _plane_resize(steps: Sequence[Any], device: str) -> PlaneResize | None:
    """Return what resizes planes as the steps resize images; None if only images can be resized."""
    if len(steps) != 1:
        return None
    (step,) = steps
    dtype = torch.float32 if device == "cpu" else torch.float16
    if isinstance(step, PySlowFastResize):
        return PlaneResize(step.output_size, "bilinear", dtype, is_antialiased=False)
    if type(step) is Resize and step.interpolation.value in ("bilinear", "bicubic"):
        return PlaneResize(partial(output_size, step.size), step.interpolation.value, dtype)
    return None


def _fast_resize(step: Any, device: str) -> Any:
    """Return the fastest equivalent of a resize on a device; other steps as they are."""
    if type(step) is not Resize:
        return step
    if device != "cpu" and step.interpolation.value in ("bilinear", "bicubic"):
        return MatrixResize(step.size, step.interpolation.value)
    # In uint8 throughout, as PIL does it; the older class converts to float, which costs ten times
    # as much.
    return v2.Resize(step.size, step.interpolation, antialias=True)


def load_backbone(
    path: Path,
    spec: FeatureSpec,
    device: str,
    *,
    dtype: str | None = None,
    num_threads: int = 1,
    compiled_batch_size: int | None = None,
) -> Backbone:
    """Load the backbone of a feature folder.

    Args:
        path: safetensors file of the weights.
        spec: the folder's feature specification.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: dtype of the computation; by default the specification's.
        num_threads: batches to compute at the same time on a CPU; a compiled module computes one,
            with all threads.
        compiled_batch_size: compile for batches of this size; None for eager execution.

    Raises:
        BackboneError: the file is missing, or its digest is not the specification's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"cannot read {path} ({error.strerror}); restore it") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != spec.weights_digest:
        raise BackboneError(
            f"{path}: its SHA-256 is {digest[:16]}…, but extraction.json says "
            f"{spec.weights_digest[:16]}…; the weights were changed: restore them, or extract into "
            "another folder"
        )
    module = create_module(
        spec.backbone, pretrained=False, pool=spec.pool, image_size=spec.image_size
    )
    module.load_state_dict(safetensors.torch.load(data))
    torch_dtype: torch.dtype = getattr(torch, dtype or spec.precision)
    module = module.to(device, torch_dtype).eval().requires_grad_(False)
    num_convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    channels_last = num_convolutions >= MIN_CONVOLUTIONS
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    preprocessing = Preprocessing.from_json(spec.preprocessing)
    return Backbone(
        module=module if compiled_batch_size is None else compile_module(module),
        transform=evaluation_transform(preprocessing, device, spec.views),
        dtype=torch_dtype,
        channels_last=channels_last,
        fixed_size=compiled_batch_size,
        num_threads=num_threads if device == "cpu" and compiled_batch_size is None else 1,
    )


def compile_module(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the module compiled at its first call, for one batch size, with frozen weights."""
    # "freezing" is what makes compiling pay on a CPU.
    return torch.compile(module, dynamic=False, options={"freezing": True})

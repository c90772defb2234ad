"""The frozen image backbone: frames in, one feature vector each out, with the preprocessing it was
made for.

The main process builds it once (`build_backbone`) and writes its weights into the feature folder;
every worker loads those (`load_backbone`) and checks their digest, so that random weights, too, are
the same everywhere.
"""

import contextlib
import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from ..manifests.errors import BackboneError, first_line
from ..manifests.factory import is_factory, module_from_factory
from .preprocessing import Preprocessing
from .transform import Transform
from .weights import fill

RANDOM_SEED = 0  # of `weights none`


class Kinds(NamedTuple):
    """What a backbone is made of, as far as it matters for speed."""

    num_convolutions: int  # to which memory formats matter
    num_attentions: int  # that can do with a fused kernel or without


class Computing(NamedTuple):
    """Features on their way: [N, V, D] float32 on the CPU, there once `event` has come."""

    features: Tensor
    event: "torch.cuda.Event | None"

    def wait(self) -> Tensor:
        """The features, when they are there."""
        if self.event is not None:
            self.event.synchronize()
        return self.features


@dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A module [N, 3, H, W] → [N, D] with its transform, on a device.

    Attributes:
        module: frozen, in eval mode, in the precision's dtype.
        transform: what makes its input.
        dtype: of weights and activations.
        kinds: what it is made of.
        channels_last: whether its input lies in memory pixel by pixel.
        fixed_size: images of every batch, for a compiled module; smaller batches are filled up.
    """

    module: Callable[[Tensor], Tensor]
    transform: Transform
    dtype: torch.dtype
    kinds: Kinds = Kinds(0, 0)
    channels_last: bool = False
    fixed_size: int | None = None

    @torch.inference_mode()
    def start(self, images: Tensor) -> Computing:
        """Sends images through; on a GPU this returns before the features are there.

        Args:
            images: [N, V, 3, h, w] uint8, as `transform.resize` makes them.
        """
        num_frames, num_views = images.shape[:2]
        order = torch.channels_last if self.channels_last else torch.contiguous_format
        inputs = self.transform.normalise(images.flatten(0, 1))
        inputs = inputs.to(self.dtype, memory_format=order)
        if self.fixed_size is not None and len(inputs) < self.fixed_size:
            filler = inputs[:1].expand(self.fixed_size - len(inputs), -1, -1, -1)
            inputs = torch.cat((inputs, filler))
        outputs = self.module(inputs)[: num_frames * num_views].to(torch.float32)
        features = outputs.to("cpu", non_blocking=True).unflatten(0, (num_frames, num_views))
        event = None
        if outputs.device.type == "cuda":
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(outputs.device))
        return Computing(features, event)

    def features(self, images: Tensor) -> Tensor:
        """The features [N, V, D], float32 on the CPU, of images as `start` takes them."""
        return self.start(images).wait()


def evaluation_transform(
    preprocessing: Preprocessing, device: str, views: Sequence[str] = ("centre",)
) -> Transform:
    """Timm's own evaluation transform up to the conversion to float, for batches of uint8.

    Raises:
        BackboneError: its crop leaves nothing to take other views of.
    """
    from torchvision.transforms import Resize, v2

    if "left" in views and preprocessing.crop_mode != "center":
        raise BackboneError(
            f"--views three-crop: the backbone's preprocessing has crop mode "
            f"{preprocessing.crop_mode!r}, which leaves nothing beside the centre; give "
            "--views flip"
        )
    *steps, crop, _, _ = timm_steps(preprocessing)
    return Transform(
        preprocessing=preprocessing,
        # The same resize in uint8 throughout, as PIL does it; the older class goes by float, at ten
        # times the cost.
        resize_steps=[
            v2.Resize(step.size, step.interpolation, antialias=True)
            if type(step) is Resize
            else step
            for step in steps
        ],
        crop=crop,
        views=tuple(views),
        device=torch.device(device),
    )


def timm_steps(preprocessing: Preprocessing) -> list[Any]:
    """The steps of timm's evaluation transform: resize, crop, conversion to float, normalising."""
    from timm.data import create_transform

    steps: list[Any] = create_transform(**asdict(preprocessing), is_training=False).transforms
    names = [type(step).__name__ for step in steps]
    assert "Crop" in names[-3], names
    assert names[-2:] == ["MaybeToTensor", "Normalize"], names
    return steps


@dataclass(frozen=True, kw_only=True, eq=False)
class BuiltBackbone:
    """A backbone as the main process makes it: what goes into the feature folder.

    Attributes:
        weights: its tensors as the bytes of a safetensors file.
        digest: SHA-256 of `weights`.
    """

    preprocessing: Preprocessing
    dim: int
    weights: bytes
    digest: str


def build_backbone(name: str, weights: str, pool: str | None = None) -> BuiltBackbone:
    """Makes a backbone and its weights.

    Args:
        name: a timm name, `hf-hub:` names included, or `package.module:factory`.
        pool: as `create_module` takes it.
        weights: `pretrained`, `none` (random, always the same ones), or a safetensors or PyTorch
            file.

    Raises:
        BackboneError: the name is unknown, the weights can't be had or don't fit, or its output is
            not [N, D].
    """
    path = None if weights in ("pretrained", "none") else Path(weights)
    if path is not None and not path.is_file():
        raise BackboneError(
            f"weights {weights!r}: no such file, nor a model folder; give pretrained, none, or "
            "the path of a checkpoint or a model"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        module = create_module(name, pretrained=weights == "pretrained", pool=pool)
    if path is not None:
        fill(module, path)
    preprocessing = default_preprocessing(module)
    dim = _feature_dim(module, preprocessing, name)
    data, digest = weights_bytes(module.state_dict())
    return BuiltBackbone(preprocessing=preprocessing, dim=dim, weights=data, digest=digest)


def weights_bytes(state: Mapping[str, Tensor]) -> tuple[bytes, str]:
    """The bytes of a safetensors file, and their SHA-256; the same for the same tensors."""
    data = safetensors.torch.save(
        {key: tensor.detach().cpu().clone().contiguous() for key, tensor in state.items()}
    )
    return data, hashlib.sha256(data).hexdigest()


def load_backbone(
    name: str,
    path: Path,
    *,
    digest: str,
    pool: str | None,
    dtype: str,
    transform: Transform,
    channels_last: bool = False,
    fused_attention: bool = True,
    compiled_size: int | None = None,
) -> Backbone:
    """Makes the backbone of a feature folder from the weights that lie there.

    Raises:
        BackboneError: the file's digest is not the one in extraction.json.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror}); put it back") from None
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise BackboneError(
            f"{path}: its SHA-256 is {found[:16]}…, but extraction.json says {digest[:16]}…; "
            "the weights were changed: put them back, or extract into another folder"
        )
    module = create_module(name, pretrained=False, pool=pool)
    module.load_state_dict(safetensors.torch.load(data))
    torch_dtype: torch.dtype = getattr(torch, dtype)
    module = module.to(transform.device, torch_dtype).eval().requires_grad_(False)
    attentions: list[Any] = [
        part for part in module.modules() if getattr(part, "fused_attn", False) is True
    ]
    for attention in attentions:
        attention.fused_attn = fused_attention  # timm's switch
    num_convolutions = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    return Backbone(
        module=module if compiled_size is None else compiled(module),
        transform=transform,
        dtype=torch_dtype,
        kinds=Kinds(num_convolutions, len(attentions)),
        channels_last=channels_last,
        fixed_size=compiled_size,
    )


def compiled(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The module, compiled for one size of batch at its first call; its weights frozen in."""
    import torch._inductor.config

    torch._inductor.config.freezing = True  # on a CPU, this is what makes it pay
    return torch.compile(module, dynamic=False)


def create_module(name: str, *, pretrained: bool, pool: str | None = None) -> nn.Module:
    """Makes a backbone's module [N, 3, H, W] → [N, D], by its timm name or its factory.

    Args:
        name: which.
        pretrained: with its pretrained weights.
        pool: how a timm model makes one vector of its last feature map or tokens (`avg`, `max`,
            `avgmax`, `token`, ...); None for its own way.

    Raises:
        BackboneError: the name or the pooling is unknown, or its pretrained weights can't be had.
    """
    if is_factory(name):
        if pool is not None:
            raise BackboneError(
                f"--pool {pool}: backbone {name!r} is a factory, which pools as it is written; "
                "leave out --pool"
            )
        if pretrained:
            raise BackboneError(
                f"backbone {name!r} is a factory, which has no pretrained weights by name; "
                "give --weights none or --weights FILE"
            )
        return module_from_factory(name, what="backbone", error_type=BackboneError)
    # Modules may be built on the meta device, but torch 2.6 can't be imported whole on it.
    with _explain_import_errors(), torch.device("cpu"):
        import timm

    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except OSError as error:  # of the hub's before ValueError: some are both
        raise BackboneError(
            f"backbone {name!r}: its files can't be had from the Hugging Face hub "
            f"({first_line(error)}); "
            "on a machine without a network, download them elsewhere and copy the cache (HF_HOME), "
            "or give --weights FILE"
        ) from None
    except (ValueError, ImportError) as error:
        raise BackboneError(
            f"backbone {name!r}: {first_line(error)}; give a timm name, hf-hub:NAME, or "
            "package.module:factory"
        ) from None
    except RuntimeError as error:
        if not str(error).startswith(("Unknown model", "Invalid pretrained tag", "No pretrained")):
            raise
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise BackboneError(f"backbone {name!r}: {error}; {hint}") from None
    if pool is not None:
        try:
            module.reset_classifier(0, pool)  # type: ignore[operator]
        except Exception as error:  # each model refuses in its own way
            raise BackboneError(
                f"--pool {pool}: backbone {name!r} has no such pooling ({first_line(error)}); "
                "try token or avg for a transformer, avg, max or avgmax for a convolutional network"
            ) from error
    return module


def layers_of(module: nn.Module, name: str) -> list[list[str]]:
    """The names of a backbone's parameters, layer by layer as timm divides it: what comes before
    the blocks, then each block; norms after the last one belong to it.

    Raises:
        BackboneError: the module has no `group_matcher`, as timm's models have.
    """
    from timm.models import group_parameters

    if not hasattr(module, "group_matcher"):
        raise BackboneError(
            f"backbone {name!r} has no group_matcher, as timm's models have, so its blocks are not "
            "known; leave out --train-blocks and --layer-decay"
        )
    found = group_parameters(module, module.group_matcher(coarse=False))  # type: ignore[operator]
    layers = [list(names) for _, names in sorted(found.items())]
    parameters = dict(module.named_parameters())
    if len(layers) > 1 and all(parameters[one].ndim < 2 for one in layers[-1]):
        layers[-2] += layers.pop()
    return layers


@contextlib.contextmanager
def _explain_import_errors() -> Iterator[None]:
    """Says in one line what a torch and a torchvision of different builds say in forty."""
    try:
        yield
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise BackboneError(
            "torch and torchvision are of different builds; install both from the same index "
            "(`vtnpipe doctor` shows their versions)"
        ) from None


def default_preprocessing(module: nn.Module) -> Preprocessing:
    """From the model's own data configuration; timm's defaults for a module without one."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(module)
    return Preprocessing(
        input_size=tuple(config["input_size"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _feature_dim(module: nn.Module, preprocessing: Preprocessing, name: str) -> int:
    """D, found by a forward pass over one black frame."""
    was_training = module.training
    try:
        with torch.inference_mode():
            output = module.eval()(torch.zeros(1, *preprocessing.input_size))
    except Exception as error:
        raise BackboneError(
            f"backbone {name!r} fails on a frame of {list(preprocessing.input_size)}: "
            f"{type(error).__name__}: {first_line(error)}; check its input size"
        ) from error
    module.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise BackboneError(
            f"backbone {name!r} gives {shape} for one frame; "
            "features must be [N, D]: one vector a frame"
        )
    return int(output.shape[1])

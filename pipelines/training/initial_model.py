"""The initial network of a finetuning: a backbone and a new temporal model, or another model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch

from ...extract.create_backbone import DEFAULT_BACKBONE, BuiltBackbone, build_backbone
from ...extract.decode.sampling import Sampling
from ...manifests.errors import SettingsError
from ...manifests.feature_folder import BEFORE_RESIZE, FeatureSpec
from ...temporal.checkpoint import RunFolder
from ...temporal.model import TemporalClassifier
from ...temporal.presets import preset
from ..models.model_folder import NetworkConfig, backbone_module
from ..models.network import VideoTransformerNetwork
from ..settings import check_unset
from .data import Splits
from .finetune_settings import FinetuneSettings
from .temporal_config import (
    SHAPE,
    choose_preset,
    given_dropouts,
    new_temporal_config,
    output_fields,
)


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """The initial network of a finetuning, which may still depend on the training classes.

    Attributes:
        description: its origin, in words.
        sampling: frames that it takes of a video.
        class_names: classes of its head; None if that is created for the training split's.
        create: creates the network for given splits.
    """

    description: str
    sampling: Sampling
    class_names: list[str] | None
    create: Callable[[Splits], VideoTransformerNetwork]


def initial_model(settings: FinetuneSettings) -> InitialModel:
    """Return the initial model of a finetuning.

    Raises:
        VtnpipeError: there is no such model or backbone, or a setting does not fit it.
    """
    return _on_backbone(settings) if settings.from_ == "none" else _from_model(settings)


def _on_backbone(settings: FinetuneSettings) -> InitialModel:
    name = settings.backbone
    if name is None:
        is_auto = settings.preset == "auto"
        name = DEFAULT_BACKBONE if is_auto else preset(settings.preset).backbone
    if RunFolder(Path(settings.weights)).config.exists():
        raise SettingsError(
            f"--weights {settings.weights}: is a model folder; give --from {settings.weights}"
        )
    built = build_backbone(name, settings.weights, settings.pool, settings.image_size)
    taken = f" ({built.weights_taken})" if built.weights_taken else ""
    chosen = choose_preset(settings, name, built.dim)
    spec = FeatureSpec(
        backbone=name,
        weights_digest=built.digest,
        preprocessing=built.preprocessing.to_json(),
        fps=settings.fps,
        frame_stride=settings.frame_stride,
        pool=settings.pool,
        image_size=settings.image_size,
    )

    def create(splits: Splits) -> VideoTransformerNetwork:
        names = splits.class_names
        temporal = new_temporal_config(
            settings,
            chosen,
            built.dim,
            splits.targets[0],
            names,
            window_frames=settings.clip_frames if settings.segments else None,
        )
        config = NetworkConfig(spec=spec, temporal=temporal, class_names=names)
        return _network(built, TemporalClassifier(temporal), config)

    return InitialModel(
        description=f"initialized with the weights {settings.weights}{taken} and a new temporal "
        "model",
        sampling=Sampling.from_spec(spec),
        class_names=None,
        create=create,
    )


def _network(
    built: BuiltBackbone, temporal: TemporalClassifier, config: NetworkConfig
) -> VideoTransformerNetwork:
    backbone = backbone_module(config)
    backbone.load_state_dict(safetensors.torch.load(built.weights))
    return VideoTransformerNetwork(backbone, temporal, config)


def _from_model(settings: FinetuneSettings) -> InitialModel:
    folder = Path(settings.from_)
    why = f"the model has the shape of {folder}, its initial model"
    check_unset(settings, ("preset", "positions", *SHAPE), why)
    model = VideoTransformerNetwork.from_pretrained(folder)
    config = model.config
    if settings.task != config.temporal.task and not settings.new_head:
        raise SettingsError(
            f"--task {settings.task} with --from {folder}: that model is for {config.temporal.task}"
            f"; give --task {config.temporal.task}, or --new-head"
        )

    def create(splits: Splits) -> VideoTransformerNetwork:
        temporal = replace(config.temporal, **given_dropouts(settings))
        if settings.new_head:
            outputs = output_fields(settings, splits.targets[0], splits.class_names)
            temporal = replace(temporal, **outputs, shortcut="none")
        classifier = TemporalClassifier(temporal)
        dropped = ("head.", "shortcut.") if settings.new_head else ()
        state = model.temporal.state_dict()
        kept = {name: value for name, value in state.items() if not name.startswith(dropped)}
        classifier.load_state_dict(kept, strict=not dropped)
        if classifier.shortcut is not None:
            classifier.shortcut.blend.fill_(1.0)  # a small factor would leave no gradient
        spec = replace(config.spec, color_conversion=BEFORE_RESIZE)  # of the augmented images
        changed = replace(config, spec=spec, temporal=temporal, class_names=splits.class_names)
        return VideoTransformerNetwork(model.backbone, classifier, changed)

    return InitialModel(
        description=f"initialized with {folder}{' and a new head' if settings.new_head else ''}",
        sampling=Sampling.from_spec(config.spec),
        class_names=None if settings.new_head else config.class_names,
        create=create,
    )

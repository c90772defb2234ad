"""What a finetuning begins with: a model, or a new one on a backbone."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from ...extract.backbone import BuiltBackbone, build_backbone
from ...extract.decode.sampling import Sampling
from ...manifests.errors import SettingsError
from ...temporal.config import TemporalConfig
from ...temporal.model import TemporalClassifier
from ...temporal.presets import preset
from ...temporal.run_folder import RunFolder
from ..extraction.feature_spec import DEFAULT_BACKBONE, SAMPLING
from ..models.model_folder import NetworkConfig, backbone_module
from ..models.network import VideoTransformerNetwork
from .data import Splits
from .fit_shape import check_shape_is_unset, choose_preset, dropouts, shape

if TYPE_CHECKING:
    from ..finetune import FinetuneSettings


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """A network to be, for which classes may still have to be known.

    Attributes:
        words: what it is, for people.
        sampling: which of a video's frames it takes.
        class_names: of its head; None where that is made for those of the training split.
        network: makes it, for rows that are to be learnt from.
    """

    words: str
    sampling: Sampling
    class_names: list[str] | None
    network: Callable[[Splits], VideoTransformerNetwork]


def start_network(settings: "FinetuneSettings") -> StartingPoint:
    """What the settings say that a finetuning begins with.

    Raises:
        VtnpipeError: there is no such model or backbone, or a setting does not fit it.
    """
    if settings.from_ == "none":
        return _new(settings)
    return _of_model(settings)


def _new(settings: "FinetuneSettings") -> StartingPoint:
    name = settings.backbone
    if name is None:
        is_auto = settings.preset == "auto"
        name = DEFAULT_BACKBONE if is_auto else preset(settings.preset).backbone
    if RunFolder(Path(settings.weights)).config.exists():
        raise SettingsError(
            f"--weights {settings.weights}: is a model folder; give --from {settings.weights}"
        )
    built = build_backbone(name, settings.weights, settings.pool)
    chosen = choose_preset(settings, name, built.dim)
    identity: dict[str, Any] = {
        "backbone": name,
        "weights_digest": built.digest,
        "preprocessing": built.preprocessing.to_json(),
        **SAMPLING,
        "fps": settings.fps,
        "every": settings.every,
        "pool": settings.pool,
    }

    def network(splits: Splits) -> VideoTransformerNetwork:
        names = splits.class_names
        temporal = shape(settings, chosen, built.dim, splits.targets[0], len(names))
        config = NetworkConfig(identity=identity, temporal=temporal, class_names=names)
        return _join(built, TemporalClassifier(temporal), config)

    return StartingPoint(
        words=f"begun with the weights {settings.weights} and a new temporal model",
        sampling=Sampling.from_identity(identity),
        class_names=None,
        network=network,
    )


def _join(
    built: BuiltBackbone, temporal: TemporalClassifier, config: NetworkConfig
) -> VideoTransformerNetwork:
    backbone = backbone_module(config)
    backbone.load_state_dict(safetensors.torch.load(built.weights))
    return VideoTransformerNetwork(backbone, temporal, config)


def _of_model(settings: "FinetuneSettings") -> StartingPoint:
    folder = Path(settings.from_)
    check_shape_is_unset(settings, folder)
    model = VideoTransformerNetwork.from_pretrained(folder)
    config = model.config
    if settings.task != config.temporal.task and not settings.new_head:
        raise SettingsError(
            f"--task {settings.task} with --from {folder}: that model is for {config.temporal.task}"
            f"; give --task {config.temporal.task}, or --new-head"
        )

    def network(splits: Splits) -> VideoTransformerNetwork:
        temporal = replace(config.temporal, **dropouts(settings))
        if settings.new_head:
            temporal = _for_classes(temporal, settings, splits)
        classifier = TemporalClassifier(temporal)
        classifier.encoder.load_state_dict(model.temporal.encoder.state_dict())
        if not settings.new_head:
            classifier.head.load_state_dict(model.temporal.head.state_dict())
        names = splits.class_names
        changed = replace(config, temporal=temporal, class_names=names)
        return VideoTransformerNetwork(model.backbone, classifier, changed)

    return StartingPoint(
        words=f"begun with {folder}{' and a new head' if settings.new_head else ''}",
        sampling=Sampling.from_identity(config.identity),
        class_names=None if settings.new_head else config.class_names,
        network=network,
    )


def _for_classes(
    config: TemporalConfig, settings: "FinetuneSettings", splits: Splits
) -> TemporalConfig:
    """The configuration with an output for what is to be learnt."""
    made = shape(
        settings,
        choose_preset(settings, "", config.feature_dim),
        config.feature_dim,
        splits.targets[0],
        len(splits.class_names),
    )
    return replace(
        config,
        task=made.task,
        num_classes=made.num_classes,
        target_mean=made.target_mean,
        target_std=made.target_std,
    )

"""Run page of `vtnpipe report`: metrics, curves, confusion, classes, and videos with attention."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...extract.decode.protocol import DecodeRequest
from ...extract.decode.sampling import Sampling
from ...manifests.errors import FeaturesError
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow
from ...manifests.plan import read_file_sizes
from ...manifests.times import seconds_edges
from ...temporal.checkpoint import RunFolder
from ...temporal.feature_reader import check_finite
from ...temporal.metrics import METRICS
from ...temporal.tasks import decision, is_decided, probabilities, task_losses
from ..console import metric_parts
from ..inference.predictions import Predictions
from ..inference.video_classifier import VideoFeatures, extract_features
from ..models.model_folder import NetworkConfig, load_temporal
from ..models.network import VideoTransformerNetwork
from .attention import Strip, attention_of
from .confusion import Confusion, wilson_interval
from .page import Cell, Table, cell, table
from .plots import Chart, line_chart, number_text, scatter_chart
from .thumbnails import Wanted, even_places, thumbnails

ATTENTION_WORDS = (
    "Frames along each video's time and, under them, how much [CLS], from which the class is read, "
    "attends to each frame. Choose a layer and a head under each."
)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """What a page shows of a run; the names are the template's."""

    facts: list[tuple[str, str]]
    metrics: list[dict[str, str]]
    counts: str
    has_gaps: bool
    curves: list[Chart]
    epochs: Table
    confusion: Confusion | None
    pairs: Table
    classes: Table | None
    scatter: Chart | None
    worst: list[Strip]
    best: list[Strip]
    settings: list[tuple[str, str]]
    spec: list[tuple[str, str]]
    strips_words: str


def run_section(
    files: RunFolder,
    config: NetworkConfig,
    predictions: Predictions | None,
    strips: tuple[list[Strip], list[Strip]],
    begun: dict[str, Any],
) -> RunSection:
    """What there is to show of a run.

    Args:
        files: the run or model folder.
        config: of its model.
        predictions: of the split that is shown; None where there are none.
        strips: strips of its worst and of its best videos.
        begun: settings that the run was begun with.
    """
    lines = read_lines(files)
    record = {} if predictions is None else predictions.record
    metrics, intervals = record.get("metrics", {}), record.get("intervals", {})
    counts = record.get("counts", {"expected": 0, "scored": 0, "missing": 0, "partial": 0})
    names = METRICS[config.temporal.task].names if metrics else ()
    parts = [metric_parts(name, metrics[name], intervals.get(name)) for name in names]
    confusion = None
    if "confusion" in metrics:
        matrix = np.array(metrics["confusion"], dtype=np.int64)
        confusion = Confusion(classes=config.class_names, counts=matrix)
    worst, best = strips
    return RunSection(
        facts=_facts(config, lines, record),
        metrics=[
            {"name": name, "value": value, "interval": f"95%: {words}" if words else ""}
            for name, value, words in parts
        ],
        counts=f"{counts['expected']:,} videos expected, {counts['scored']:,} scored, "
        f"{counts['missing']:,} missing, {counts['partial']:,} partial",
        has_gaps=counts["missing"] + counts["partial"] > 0,
        curves=curves(config, lines),
        epochs=_epochs(lines),
        confusion=confusion,
        pairs=_pairs(confusion),
        classes=_classes(metrics, confusion),
        scatter=_scatter(config, predictions),
        worst=worst,
        best=best,
        settings=_words(begun),
        spec=_words(config.spec.to_json()),
        strips_words=ATTENTION_WORDS if any(one.attention for one in worst + best) else "",
    )


def read_lines(files: RunFolder) -> list[dict[str, Any]]:
    """Those of metrics.jsonl; a model that was not trained here has none."""
    if not files.metrics.exists():
        return []
    try:
        text = files.metrics.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise FeaturesError(
            f"{files.metrics}: cannot be read ({error}); the training command writes it anew from "
            "its checkpoint"
        ) from None


def _facts(
    config: NetworkConfig, lines: list[dict[str, Any]], record: dict[str, Any]
) -> list[tuple[str, str]]:
    temporal, names = config.temporal, config.class_names
    encoder = temporal.encoder
    if encoder in ("longformer", "full"):
        layers = "1 layer" if temporal.num_layers == 1 else f"{temporal.num_layers} layers"
        encoder += f", {layers} of {temporal.num_heads} heads"
        encoder += f", window {temporal.attention_window}" if temporal.encoder != "full" else ""
    found = [
        ("backbone", config.spec.backbone),
        ("temporal model", f"{encoder}; features of {temporal.feature_dim}"),
        ("task", temporal.task + (f", {len(names):,} classes" if names else "")),
    ]
    if lines:
        best = [line["epoch"] for line in lines if line["is_best"]][-1]
        found.append(("epochs", f"{len(lines)}; the model is epoch {best}'s, the best"))
    if record:
        settings = record["settings"]
        how = f"{settings['clips']} clips" if settings["clips"] else "every frame at once"
        found.append(("evaluated on", f"split {settings['split']}, {how}; {record['source']}"))
        if record["faults"]:
            found.append(("not all decoded", "; ".join(record["faults"][:5])))
    return found


def curves(config: NetworkConfig, lines: list[dict[str, Any]]) -> list[Chart]:
    """Charts over the epochs."""

    def of(*names: str) -> dict[str, Any]:
        return {
            metric_parts(name, None)[0]: [(line["epoch"], line[name]) for line in lines]
            for name in names
        }

    training = {"training": [(line["epoch"], line["train_loss"]) for line in lines]}
    loss = training | {"validation": [(line["epoch"], line["loss"]) for line in lines]}
    others = [name for name in METRICS[config.temporal.task].names if name != "loss"]
    is_share = config.temporal.task != "regression"
    rate = {"learning rate": [(line["epoch"], line["lr"]) for line in lines]}
    over: dict[str, Any] = {"x_label": "epoch", "is_whole": True}
    found = [
        line_chart("Loss", loss, **over),
        line_chart("Validation", of(*others), is_share=is_share, **over),
        line_chart("Learning rate", rate, from_zero=True, **over),
    ]
    return [chart for chart in found if chart is not None]


def _epochs(lines: list[dict[str, Any]]) -> Table:
    names = [name for name in lines[0] if name not in ("lost", "is_best")] if lines else []
    rows = [
        [
            cell(None) if line[name] is None else Cell(number_text(line[name]), line[name])
            for name in names
        ]
        for line in lines
    ]
    return Table(names, rows)


def _pairs(confusion: Confusion | None) -> Table:
    pairs = confusion.pairs if confusion else []
    rows = [(one.label, one.predicted, one.num_videos, cell(one.share, "{:.1%}")) for one in pairs]
    return table("Class, Taken for, Videos, Share of the class", rows)


def _classes(metrics: dict[str, Any], confusion: Confusion | None) -> Table | None:
    """Each class's figure; with its 95% interval and what it is taken for, where one is right."""
    per_class: dict[str, float | None] = metrics.get("per_class", {})
    if not per_class:
        return None
    if confusion is None:
        rows = [(name, cell(value, "{:.1%}")) for name, value in per_class.items()]
        return table("Class, Average precision", rows, "Classes; – where none of the videos has it")
    found = []
    for index, (name, value) in enumerate(per_class.items()):
        total, row = int(confusion.totals[index]), confusion.counts[index].copy()
        right, row[index] = int(row[index]), 0
        low, high = wilson_interval(right, total) if total else (None, None)
        others = [other for other in np.argsort(-row, kind="stable")[:3].tolist() if row[other]]
        taken = ", ".join(f"{confusion.classes[other]} ({row[other]})" for other in others)
        shares = [cell(share, "{:.1%}") for share in (value, low, high)]
        found.append([cell(name), cell(total), *shares, cell(taken)])
    return table(
        "Class, Videos, Accuracy, 95% from, 95% to, Taken for", found, "Classes; 95%: by Wilson"
    )


def _scatter(config: NetworkConfig, predictions: Predictions | None) -> Chart | None:
    if config.temporal.task != "regression" or predictions is None:
        return None
    points = zip(predictions.targets.tolist(), predictions.logits[:, 0].tolist(), strict=True)
    return scatter_chart("Predicted against labelled", list(points), x_label="label", unit="videos")


def _words(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings as people read them."""
    words = []
    for key, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {one}" for name, one in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        words.append((key, "–" if value is None else str(value)))
    return words


def choose_videos(
    config: NetworkConfig, predictions: Predictions, count: int
) -> tuple[list[int], list[int]]:
    """Numbers of the videos with the largest and the smallest loss, none in both."""
    losses = task_losses(predictions.logits, predictions.targets, config.temporal)
    order = losses.argsort(descending=True, stable=True).tolist()
    worst = order[: min(count, (len(order) + 1) // 2)]
    best = order[len(worst) :][::-1][:count]
    return worst, best


def video_strips(
    files: RunFolder,
    config: NetworkConfig,
    predictions: Predictions,
    numbers: Sequence[int],
    rows: dict[str, VideoRow],
    store: FeatureStore | None,
    *,
    num_frames: int,
    device: str,
) -> list[Strip]:
    """Strips of some of the predicted videos.

    Args:
        files: the run or model folder.
        config: of its model.
        predictions: of the split.
        numbers: of the videos in it.
        rows: by video_id.
        store: their features; None to decode the videos and compute them.
        num_frames: pictures of each.
        device: to compute on.
    """
    ids = [predictions.video_ids[number] for number in numbers]
    if store is None:
        network = VideoTransformerNetwork.from_pretrained(files.root).to(device)
        temporal, seen = network.temporal, seen_by(network, [rows[video_id] for video_id in ids])
        sizes: dict[str, int | None] = {}
    else:
        temporal = load_temporal(files, config).to(device)
        seen = {video_id: seen_in(store, video_id) for video_id in ids}
        sizes = read_file_sizes(store.folder, ids)
    wanted = {
        video_id: Wanted.of(
            rows[video_id],
            even_places(one.timestamps, num_frames),
            one.frame_index,
            one.timestamps,
            sizes.get(video_id),
        )
        for video_id, one in seen.items()
    }
    pictures = thumbnails(wanted)
    strips = []
    for number, video_id in zip(numbers, ids, strict=True):
        if video_id not in seen:
            continue
        one = seen[video_id].to(device)
        strips.append(
            Strip(
                name=video_id,
                lines=prediction_lines(config, predictions, number),
                thumbnails=pictures[video_id].thumbnails,
                note=pictures[video_id].note,
                edges=seconds_edges(one.timestamps),
                attention=attention_of(temporal, one),
            )
        )
    return strips


def seen_in(store: FeatureStore, video_id: str) -> VideoFeatures:
    """A video's stored features."""
    video = store[video_id]
    check_finite(video_id, video.features, store)
    features = torch.from_numpy(video.features.astype(np.float32))
    features = features[:, None] if features.ndim == 2 else features
    return VideoFeatures(features.transpose(0, 1), video.timestamps, video.frame_index)


def seen_by(network: VideoTransformerNetwork, rows: Sequence[VideoRow]) -> dict[str, VideoFeatures]:
    """Videos' features as a network computes them; not of those that can't be decoded."""
    sampling = Sampling.from_spec(network.config.spec)
    requests = [DecodeRequest(row.path, row.start, row.end, sampling) for row in rows]
    pieces = extract_features(network, requests)
    return {
        row.video_id: piece.features
        for row, piece in zip(rows, pieces, strict=True)
        if len(piece.timestamps)
    }


def prediction_lines(config: NetworkConfig, predictions: Predictions, number: int) -> list[str]:
    """What a model says of a video, beside its label."""
    logits, target = predictions.logits[number], predictions.targets[number]
    names, task = config.class_names, config.temporal.task
    said = decision(logits, names, task)
    if task == "regression":
        return [f"label {float(target):.9g}, predicted {said}"]
    if task == "classification":
        label, is_right = names[int(target)], int(logits.argmax()) == int(target)
    else:
        label = "|".join(names[index] for index in target.nonzero()[:, 0].tolist())
        is_right = bool((is_decided(logits) == target.bool()).all())
    shares = probabilities(logits, task)
    top = shares.argsort(descending=True)[:5].tolist()
    words = ", ".join(f"{names[index]} {float(shares[index]):.1%}" for index in top)
    verdict = "right" if is_right else "wrong"
    return [f"label {label or 'none'}, predicted {said or 'none'}: {verdict}", words]

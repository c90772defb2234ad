"""The page of `vtnpipe report`, and its section on a run: metrics, curves, confusion, videos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...extract.decode.protocol import DecodeRequest
from ...extract.decode.sampling import Sampling
from ...manifests.errors import counted
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow
from ...manifests.plan import read_file_sizes
from ...manifests.times import seconds_edges
from ...temporal.baselines import NAMES
from ...temporal.checkpoint import RunFolder, kept_epoch, read_epochs
from ...temporal.feature_reader import check_finite
from ...temporal.intervals import wilson_interval
from ...temporal.metrics import shown_names
from ...temporal.tasks import decision, is_decided, probabilities, task_losses
from ..console import metric_parts
from ..inference.predictions import Predictions
from ..inference.segmentation import FramePredictions
from ..inference.video_classifier import VideoFeatures, extract_features
from ..models.model_folder import NetworkConfig
from ..models.network import VideoTransformerNetwork, load_temporal
from .attention import VideoStrip, video_attention
from .confusion import Confusion
from .page import Cell, Table, cell, table, write_page
from .plots import Chart, line_chart, number_text, scatter_chart
from .report_features import ExtractionSection
from .thumbnails import ThumbnailRequest, decode_thumbnails, even_positions
from .timeline import TIMELINE_CAPTION

ATTENTION_CAPTION = (
    "Frames along each video's time. Below them: the attention of [CLS], from which the class is "
    "predicted, to each frame. Choose a layer and a head below each video."
)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """Values of the page's section on a run, as `report.html` reads them."""

    facts: list[tuple[str, str]]
    metrics: list[dict[str, str]]
    baselines: Table | None
    counts: str
    has_gaps: bool
    curves: list[Chart]
    epochs: Table
    confusion: Confusion | None
    pairs: Table
    classes: Table | None
    scatter: Chart | None
    worst: list[VideoStrip]
    best: list[VideoStrip]
    settings: list[tuple[str, str]]
    spec: list[tuple[str, str]]
    strips_caption: str
    worst_title: str
    best_title: str


_WORST_TITLES = {
    "classification": "Wrong predictions with the largest loss",
    "multi-label": "Wrong predictions with the largest loss",
    "regression": "Videos with the largest loss",
    "frames": "Videos with the fewest correct frames",
    "frames-multi-label": "Videos with the fewest correct frames",
}


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    run: RunSection | None,
    extraction: ExtractionSection | None,
    notes: Sequence[str],
) -> None:
    """Write the page of `vtnpipe report`.

    Args:
        path: path of the page.
        title: title of the page.
        subtitle: line below the title.
        run: section on a run; None for a feature folder.
        extraction: section on a feature folder; None if a run's features are not there.
        notes: what is missing on the page, and why.
    """
    write_page(
        path,
        "report.html",
        title=title,
        subtitle=subtitle,
        run=run,
        extraction=extraction,
        notes=notes,
    )


def run_section(
    files: RunFolder,
    config: NetworkConfig,
    predictions: Predictions | FramePredictions | None,
    strips: tuple[list[VideoStrip], list[VideoStrip]],
    settings: dict[str, Any],
) -> RunSection:
    """Return the values of a run's section.

    Args:
        files: run or model folder.
        config: configuration of the model.
        predictions: predictions of the split to show; None if there are none.
        strips: strips of the videos with the largest and with the smallest loss.
        settings: settings that the run was started with.
    """
    epochs = read_epochs(files)
    record = {} if predictions is None else predictions.record
    metrics, intervals = record.get("metrics", {}), record.get("intervals", {})
    counts = record.get("counts", {"expected": 0, "scored": 0, "missing": 0, "partial": 0})
    names = shown_names(config.temporal.task, len(config.class_names)) if metrics else ()
    confusion = None
    of_frames = config.temporal.is_per_frame
    if metrics.get("confusion"):
        matrix = np.array(metrics["confusion"], dtype=np.int64)
        unit = "frames" if of_frames else "videos"
        confusion = Confusion(classes=config.class_names, counts=matrix, unit=unit)
    worst, best = strips
    return RunSection(
        facts=_facts(config, epochs, record, settings.get("keep", "best")),
        metrics=[_card(name, metrics, intervals, counts["scored"]) for name in names],
        baselines=_baseline_table(config, record),
        counts=f"{counts['expected']:,} videos expected, {counts['scored']:,} scored, "
        f"{counts['missing']:,} missing, {counts['partial']:,} partial",
        has_gaps=counts["missing"] + counts["partial"] > 0,
        curves=_curves(config, epochs, settings.get("keep", "best")),
        worst_title=_WORST_TITLES[config.temporal.task],
        best_title="Videos with the most correct frames"
        if of_frames
        else "Videos with the smallest loss",
        epochs=_epoch_table(epochs),
        confusion=confusion,
        pairs=_pair_table(confusion),
        classes=_class_table(metrics, confusion),
        scatter=_scatter(config, predictions) if isinstance(predictions, Predictions) else None,
        worst=worst,
        best=best,
        settings=_setting_texts(settings),
        spec=_setting_texts(config.spec.to_json()),
        strips_caption=TIMELINE_CAPTION
        if of_frames
        else ATTENTION_CAPTION
        if any(one.attention for one in worst + best)
        else "",
    )


def _card(
    name: str, metrics: dict[str, Any], intervals: dict[str, Any], num_scored: int
) -> dict[str, str]:
    """Return a metric's name, value, the counts behind it, and its interval, as text."""
    label, value, interval = metric_parts(name, metrics[name], intervals.get(name))
    count = counted(num_scored, "video")
    if name in ("top1", "top5"):
        count = f"{round(metrics[name] * num_scored):,} of {count}"
    elif name in ("mean_class_accuracy", "mean_average_precision"):
        num_classes = sum(one is not None for one in metrics["per_class"].values())
        count = f"mean of {counted(num_classes, 'class', 'classes')}"
    return {
        "name": label,
        "value": value,
        "count": count,
        "interval": f"95%: {interval}" if interval else "",
    }


def _facts(
    config: NetworkConfig,
    epochs: list[dict[str, Any]],
    record: dict[str, Any],
    keep: str,
) -> list[tuple[str, str]]:
    temporal, names = config.temporal, config.class_names
    encoder = temporal.encoder
    if encoder in ("longformer", "full", "uniform"):
        layers = "1 layer" if temporal.num_layers == 1 else f"{temporal.num_layers} layers"
        encoder += f", {layers} of {temporal.num_heads} heads"
        encoder += (
            f", window {temporal.attention_window}" if temporal.encoder == "longformer" else ""
        )
    found = [
        ("backbone", config.spec.backbone),
        ("temporal model", f"{encoder}; features of {temporal.feature_dim}"),
        ("task", temporal.task + (f", {len(names):,} classes" if names else "")),
    ]
    if epochs:
        epoch = kept_epoch(epochs, keep)["epoch"]
        kept = f"the best one, of epoch {epoch}" if keep == "best" else "the last one"
        found.append(("epochs", f"{len(epochs)}; the model is {kept}"))
    if record:
        settings = record["settings"]
        how = f"{settings['clips']} clips" if settings["clips"] else "every frame at once"
        found.append(("evaluated on", f"split {settings['split']}, {how}; {record['source']}"))
        if chosen := record.get("chosen_on"):
            found.append(("optimistic", f"this split chose the {' and the '.join(chosen)}"))
        if record["faults"]:
            found.append(("not decoded completely", "; ".join(record["faults"][:5])))
    return found


def _baseline_table(config: NetworkConfig, record: dict[str, Any]) -> Table | None:
    """Return a table of the model's metrics beside those of its baselines; None without any."""
    baselines = record.get("baselines")
    if not baselines:
        return None
    names = shown_names(config.temporal.task, len(config.class_names))
    rows = {"this model": record["metrics"]}
    rows |= {NAMES[name]: metrics for name, metrics in baselines.items()}
    cells = [
        (label, *(metric_parts(name, metrics[name])[1] for name in names))
        for label, metrics in rows.items()
    ]
    heads = [metric_parts(name, None)[0] for name in names]
    return table(", ".join(["model", *heads]), cells, "The model beside its baselines")


def _curves(config: NetworkConfig, epochs: list[dict[str, Any]], keep: str) -> list[Chart]:
    """Return charts of the losses, of the validation metrics and of the learning rate."""
    if not epochs:
        return []
    kept = kept_epoch(epochs, keep)["epoch"]

    def points(name: str) -> list[tuple[float, float | None]]:
        return [(one["epoch"], one[name]) for one in epochs]

    names = shown_names(config.temporal.task, len(config.class_names))
    metrics = {metric_parts(name, None)[0]: points(name) for name in names if name != "loss"}
    is_share = config.temporal.task != "regression"
    options: dict[str, Any] = {
        "x_label": "epoch",
        "is_whole": True,
        "mark": (kept, f"epoch {kept}, whose weights the model has"),
    }
    charts = [
        line_chart(
            "Loss", {"training": points("train_loss"), "validation": points("loss")}, **options
        ),
        line_chart("Validation", metrics, is_share=is_share, **options),
        line_chart("Learning rate", {"learning rate": points("lr")}, from_zero=True, **options),
    ]
    return [chart for chart in charts if chart is not None]


def _epoch_table(epochs: list[dict[str, Any]]) -> Table:
    names = [name for name in epochs[0] if name not in ("lost", "is_best")] if epochs else []
    rows = [
        [
            cell(None) if one[name] is None else Cell(number_text(one[name]), one[name])
            for name in names
        ]
        for one in epochs
    ]
    return Table(names, rows)


def _pair_table(confusion: Confusion | None) -> Table:
    unit = "Videos" if confusion is None else confusion.unit.capitalize()
    pairs = confusion.pairs if confusion else []
    rows = [(one.label, one.predicted, one.num_videos, cell(one.share, "{:.1%}")) for one in pairs]
    return table(f"Class, Predicted as, {unit}, Share of the class", rows)


def _class_table(metrics: dict[str, Any], confusion: Confusion | None) -> Table | None:
    """Return a table of the classes' metrics; None if the task has no classes.

    With a confusion matrix, it also has 95% intervals and the most frequent wrong predictions.
    """
    per_class: dict[str, float | None] = metrics.get("per_class", {})
    if not per_class:
        return None
    if "segments" in metrics:
        return _segment_table(metrics, per_class)
    if confusion is None:
        rows = [(name, cell(value, "{:.1%}")) for name, value in per_class.items()]
        return table("Class, Average precision", rows, "Classes; – if no video has the label")
    found = []
    for index, (name, value) in enumerate(per_class.items()):
        total, row = int(confusion.totals[index]), confusion.counts[index].copy()
        num_correct, row[index] = int(row[index]), 0
        low, high = wilson_interval(num_correct / total, total) if total else (None, None)
        others = [other for other in np.argsort(-row, kind="stable")[:3].tolist() if row[other]]
        predicted = ", ".join(f"{confusion.classes[other]} ({row[other]})" for other in others)
        shares = [cell(share, "{:.1%}") for share in (value, low, high)]
        found.append([name, total, *shares, predicted])
    return table(
        "Class, Videos, Accuracy, 95% from, 95% to, Wrongly predicted as",
        found,
        "Classes, with Wilson's 95% intervals",
    )


def _segment_table(metrics: dict[str, Any], per_class: dict[str, float | None]) -> Table:
    """Return a table of the classes' frames and segments."""
    share = "Accuracy of frames" if metrics["confusion"] else "Average precision of frames"
    rows = []
    for name, value in per_class.items():
        num_true, num_predicted, num_found = metrics["segments"][name]
        total = num_true + num_predicted
        f1 = 2 * num_found / total if total else None
        rows.append(
            (name, cell(value, "{:.1%}"), num_true, num_predicted, num_found, cell(f1, "{:.1%}"))
        )
    return table(
        f"Class, {share}, True segments, Predicted, Found, F1@50",
        rows,
        "Classes; a segment is found if it overlaps by half with one that is predicted",
    )


def _scatter(config: NetworkConfig, predictions: Predictions) -> Chart | None:
    if config.temporal.task != "regression":
        return None
    points = zip(predictions.targets.tolist(), predictions.logits[:, 0].tolist(), strict=True)
    return scatter_chart("Predicted against labeled", list(points), x_label="label", unit="videos")


def _setting_texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Return settings as names and texts."""
    texts = []
    for key, value in values.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {one}" for name, one in value.items())
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        texts.append((key, "–" if value is None else str(value)))
    return texts


def choose_videos(
    config: NetworkConfig, predictions: Predictions, count: int
) -> tuple[list[int], list[int]]:
    """Return the numbers of the worst and of the best videos, by their loss.

    The worst are those with a wrong prediction; of a regression, those with the largest loss.

    Args:
        config: configuration of the model.
        predictions: predictions of N videos.
        count: number of videos to choose of each kind; fewer if there are too few.

    Returns:
        two disjoint lists of numbers below N: largest loss first, and smallest loss first.
    """
    losses = task_losses(predictions.logits, predictions.targets, config.temporal)
    order = losses.argsort(descending=True, stable=True).tolist()
    is_wrong = _is_wrong(config, predictions)
    candidates = [number for number in order if is_wrong[number]]
    worst = candidates[: min(count, (len(order) + 1) // 2)]
    best = [number for number in reversed(order) if number not in worst][:count]
    return worst, best


def _is_wrong(config: NetworkConfig, predictions: Predictions) -> list[bool]:
    """Return which predictions are wrong; of a regression, all count."""
    logits, targets = predictions.logits, predictions.targets
    if config.temporal.task == "classification":
        return (logits.argmax(1) != targets).tolist()
    if config.temporal.task == "multi-label":
        return (is_decided(logits) != targets.bool()).any(1).tolist()
    return [True] * len(targets)


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
) -> list[VideoStrip]:
    """Return strips of some of the predicted videos.

    Videos that cannot be decoded are left out.

    Args:
        files: run or model folder.
        config: configuration of the model.
        predictions: predictions of the split.
        numbers: numbers of the videos among the predictions.
        rows: video_id → row of the manifest.
        store: features of the videos; None to decode the videos and compute them.
        num_frames: thumbnails per video.
        device: device of the computation.
    """
    ids = [predictions.video_ids[number] for number in numbers]
    if store is None:
        network = VideoTransformerNetwork.from_pretrained(files.root).to(device)
        temporal = network.temporal
        features = _compute_features(network, [rows[video_id] for video_id in ids])
        sizes: dict[str, int | None] = {}
    else:
        temporal = load_temporal(files, config).to(device)
        features = {video_id: _stored_features(store, video_id) for video_id in ids}
        sizes = read_file_sizes(store.folder, ids)
    requests = {
        video_id: ThumbnailRequest.of(
            rows[video_id],
            even_positions(video.timestamps, num_frames),
            video.frame_index,
            video.timestamps,
            sizes.get(video_id),
        )
        for video_id, video in features.items()
    }
    decoded = decode_thumbnails(requests)
    strips = []
    for number, video_id in zip(numbers, ids, strict=True):
        if video_id not in features:
            continue
        video = features[video_id].to(device)
        strips.append(
            VideoStrip(
                name=video_id,
                lines=prediction_lines(config, predictions, number),
                thumbnails=decoded[video_id].thumbnails,
                note=decoded[video_id].note,
                edges=seconds_edges(video.timestamps),
                attention=video_attention(temporal, video),
            )
        )
    return strips


def _stored_features(store: FeatureStore, video_id: str) -> VideoFeatures:
    """Return a video's stored features.

    Raises:
        FeaturesError: a feature is not finite.
    """
    video = store[video_id]
    check_finite(video_id, video.features, store)
    features = torch.from_numpy(video.features.astype(np.float32))
    features = features[:, None] if features.ndim == 2 else features
    return VideoFeatures(features.transpose(0, 1), video.timestamps, video.frame_index)


def _compute_features(
    network: VideoTransformerNetwork, rows: Sequence[VideoRow]
) -> dict[str, VideoFeatures]:
    """Decode videos and return video_id → features, without videos that cannot be decoded."""
    sampling = Sampling.from_spec(network.config.spec)
    requests = [DecodeRequest(row.path, row.start, row.end, sampling) for row in rows]
    pieces = extract_features(network, requests)
    return {
        row.video_id: piece.features
        for row, piece in zip(rows, pieces, strict=True)
        if len(piece.timestamps)
    }


def prediction_lines(config: NetworkConfig, predictions: Predictions, number: int) -> list[str]:
    """Return the label and the prediction of a video, and its most probable classes."""
    logits, target = predictions.logits[number], predictions.targets[number]
    names, task = config.class_names, config.temporal.task
    predicted = decision(logits, names, task)
    if task == "regression":
        return [f"label {float(target):.9g}, predicted {predicted}"]
    if task == "classification":
        label, is_correct = names[int(target)], int(logits.argmax()) == int(target)
    else:
        label = "|".join(names[index] for index in target.nonzero()[:, 0].tolist())
        is_correct = bool((is_decided(logits) == target.bool()).all())
    shares = probabilities(logits, task)
    top = shares.argsort(descending=True)[:5].tolist()
    classes = ", ".join(f"{names[index]} {float(shares[index]):.1%}" for index in top)
    verdict = "right" if is_correct else "wrong"
    return [f"label {label or 'none'}, predicted {predicted or 'none'}: {verdict}", classes]

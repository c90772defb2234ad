"""`vtnpipe evaluate`: a model's figures on a split of stored features."""

import csv
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from rich.console import Console

from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ..manifests.files import atomic_text, write_json
from ..manifests.videos import read_manifest
from .options import at_least, check_settings, setting
from .progress import say

if TYPE_CHECKING:
    from ..temporal.metrics import ClassificationMetrics, Counts

MAX_CLASSES_SHOWN = 20  # of the per-class table; all are in the file


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The settings of `vtnpipe evaluate`."""

    split: str = setting("val", help="Of the manifest.")
    manifest: str | None = setting(
        None, help="Labels and splits; by default the features' own.", metavar="FILE"
    )
    drop_partial: bool = setting(False, help="Leave out videos with missing frames.")
    batch_size: int = setting(16, help="Videos at once.", check=at_least(1))
    device: str = setting("auto", help="Where to run.", metavar="auto|cpu|cuda|cuda:N")

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """Figures, and of how many videos; also in MODEL/predictions/SPLIT.json."""

    metrics: "ClassificationMetrics"
    counts: "Counts"

    @property
    def exit_code(self) -> int:
        """1 where videos of the split are missing or partial."""
        has_gaps = self.counts.missing + self.counts.partial > 0
        return EXIT_WITH_FAILURES if has_gaps else EXIT_OK


def evaluate(
    model: str | Path,
    source: str | Path,
    settings: EvaluateSettings | None = None,
    *,
    console: Console | None = None,
) -> EvaluateReport:
    """Scores a model on every frame of a split's videos.

    Writes MODEL/predictions/SPLIT.csv (a line a video) and SPLIT.json (the figures).

    Args:
        model: a model or run folder.
        source: a feature folder, made with the model's backbone.
        settings: by default, `EvaluateSettings()`.
        console: for the figures; by default, nothing is printed.

    Raises:
        VtnpipeError: model, features, manifest or a setting breaks a rule.
    """
    import torch

    from ..extract.device import resolve_device
    from ..manifests.shards import open_features
    from ..temporal.checkpoint import RunFolder
    from ..temporal.dataset import ClipDataset
    from ..temporal.fit import predict
    from ..temporal.metrics import Counts, classification_metrics
    from ..temporal.splits import class_indices, usable_rows
    from .network import check_features, load_temporal, read_config

    settings = settings or EvaluateSettings()
    console = console or Console(quiet=True)
    device = resolve_device(settings.device)
    files = RunFolder(Path(model))
    config = read_config(files)
    store = open_features(source)
    check_features(config, store.extraction["identity"], store.folder.root)
    rows = read_manifest(settings.manifest or store.folder.manifest)
    usable = usable_rows(store, rows, settings.split, drop_partial=settings.drop_partial)
    labels = class_indices(usable.rows, config.class_names)
    dataset = ClipDataset(
        store, usable.rows, labels, position_fps=config.temporal.position_fps, sampling=None
    )
    temporal = load_temporal(files, config).to(device)
    logits = torch.cat([out for _, out in predict(temporal, dataset, settings.batch_size, device)])
    report = EvaluateReport(
        metrics=classification_metrics(logits, torch.tensor(labels), config.class_names),
        counts=Counts(
            expected=usable.num_expected,
            scored=len(usable.rows),
            missing=usable.num_missing,
            partial=usable.num_partial,
        ),
    )
    folder = files.root / "predictions"
    folder.mkdir(exist_ok=True)
    name = quote(settings.split, safe="") or "all"  # a split's name never becomes a path
    with atomic_text(folder / f"{name}.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_id", "label", "predicted", "probability"))
        for row, probabilities in zip(usable.rows, logits.softmax(1), strict=True):
            best = int(probabilities.argmax())
            probability = f"{float(probabilities[best]):.6f}"
            writer.writerow((row.video_id, row.label, config.class_names[best], probability))
    values = {
        "settings": asdict(settings),
        "features": store.extraction["fingerprint"],
        "classes": config.class_names,
        **asdict(report),
    }
    write_json(values, folder / f"{name}.json")
    _print(report, settings, config.class_names, console)
    return report


def _print(
    report: EvaluateReport, settings: EvaluateSettings, classes: list[str], console: Console
) -> None:
    metrics, counts = report.metrics, report.counts

    shown = classes[:MAX_CLASSES_SHOWN]
    width = max(12, *map(len, shown))
    say(console, f"{'class'.ljust(width)}  accuracy  predicted as (videos)")
    for index, name in enumerate(shown):
        accuracy = metrics.per_class[name]
        predicted = [(count, classes[j]) for j, count in enumerate(metrics.confusion[index])]
        found = ", ".join(f"{other} {n}" for n, other in sorted(predicted, reverse=True)[:4] if n)
        share = "       –" if accuracy is None else f"{accuracy:8.1%}"
        say(console, f"{name.ljust(width)}  {share}  {found}")
    if len(classes) > len(shown):
        say(
            console,
            f"… and {len(classes) - len(shown)} more classes in predictions/{settings.split}.json",
        )
    say(
        console,
        f"split {settings.split}: top-1 {metrics.top1:.1%}, top-5 {metrics.top5:.1%}, "
        f"mean class accuracy {metrics.mean_class_accuracy:.1%}, loss {metrics.loss:.4f}",
    )
    loud = "" if report.exit_code == EXIT_OK else "  <- not all of the split"
    say(
        console,
        f"videos: {counts.expected} expected, {counts.scored} scored, {counts.missing} missing, "
        f"{counts.partial} partial{loud}",
    )

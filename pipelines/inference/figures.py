"""Figures as people read them."""

from collections.abc import Mapping

Interval = tuple[float, float]

_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class accuracy",
    "mean_average_precision": "mAP",
    "f1": "F1",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "loss": "loss",
}
_SHARES = {"top1", "top5", "mean_class_accuracy", "mean_average_precision", "f1"}


def figure_parts(
    name: str, value: float | None, interval: Interval | None = None
) -> tuple[str, str, str]:
    """A figure's name, its value, and the interval that it probably lies in, as people read them.

    >>> figure_parts("top1", 0.875, (0.7, 0.95))
    ('top-1', '87.5%', '70.0% to 95.0%')
    """
    digits = ".1%" if name in _SHARES else ".4f"
    words = "" if interval is None else " to ".join(format(end, digits) for end in interval)
    return _NAMES[name], "–" if value is None else format(value, digits), words


def figure_text(name: str, value: float | None, interval: Interval | None = None) -> str:
    """A figure with its name, and with the interval that it probably lies in.

    >>> figure_text("top1", 0.875), figure_text("rmse", 1.23456), figure_text("r2", None)
    ('top-1  87.5%', 'RMSE 1.2346', 'R² –')
    >>> figure_text("top1", 0.875, (0.7, 0.95))
    'top-1  87.5% (70.0% to 95.0%)'
    """
    label, text, words = figure_parts(name, value, interval)
    aligned = f"{text:>6}" if text.endswith("%") else text
    return f"{label} {aligned} ({words})" if words and value is not None else f"{label} {aligned}"


def counts_text(counts: Mapping[str, int], most: int) -> str:
    """Values with how many there are of each, in their order.

    >>> counts_text({"h264": 1200, "vp9": 2, "av1": 1}, most=2)
    'h264 (1,200), vp9 (2), 1 others'
    """
    words = [f"{value} ({count:,})" for value, count in counts.items()]
    if len(words) > most:
        words[most:] = [f"{len(words) - most} others"]
    return ", ".join(words) or "none"


def figures_text(
    figures: Mapping[str, float | None],
    separator: str = ", ",
    intervals: Mapping[str, Interval] | None = None,
) -> str:
    """Figures one after the other.

    >>> figures_text({"mae": 2.0, "loss": 0.5})
    'MAE 2.0000, loss 0.5000'
    """
    known = intervals or {}
    return separator.join(figure_text(name, v, known.get(name)) for name, v in figures.items())

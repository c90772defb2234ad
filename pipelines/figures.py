"""Figures as people read them."""

from collections.abc import Mapping

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


def figure_text(name: str, value: float | None) -> str:
    """A figure with its name.

    >>> figure_text("top1", 0.875), figure_text("rmse", 1.23456), figure_text("r2", None)
    ('top-1  87.5%', 'RMSE 1.2346', 'R² –')
    """
    if value is None:
        return f"{_NAMES[name]} –"
    return f"{_NAMES[name]} {value:6.1%}" if name in _SHARES else f"{_NAMES[name]} {value:.4f}"


def figures_text(figures: Mapping[str, float | None], separator: str = ", ") -> str:
    """Figures one after the other.

    >>> figures_text({"mae": 2.0, "loss": 0.5})
    'MAE 2.0000, loss 0.5000'
    """
    return separator.join(figure_text(name, value) for name, value in figures.items())

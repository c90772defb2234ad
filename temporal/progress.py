"""How far a fit is, who looks on, and what is kept of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .inference import never


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """A line of metrics.jsonl."""

    epoch: int  # from 1, of those that are finished
    lr: float  # of its last step
    train_loss: float  # of the clips that could be read; 0 where none could
    num_scored: int  # videos of the validation split
    figures: dict[str, float | None]  # of the validation split, see `temporal/metrics.py`
    videos_per_second: float
    waiting: float  # share of the training time in which no clip was ready
    lost: list[str]  # clips and videos of which nothing or not all could be read, and why
    is_best: bool
    confusion: list[list[int]] | None = None  # of a classification; not in the line

    def to_json(self) -> dict[str, Any]:
        """The line: figures beside the rest."""
        values = asdict(replace(self, confusion=None))
        del values["confusion"]
        figures, is_best = values.pop("figures"), values.pop("is_best")
        return {**values, **figures, "is_best": is_best}


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on: `on_step(epoch, steps done, steps in all)`, `on_epoch(report)`, `should_stop()`
    after each step.
    """

    on_step: Callable[[int, int, int], None] = lambda epoch, done, total: None
    on_epoch: Callable[[EpochReport], None] = lambda report: None
    should_stop: Callable[[], bool] = never


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How a fit is kept and read; none of it changes the weights.

    Attributes:
        checkpoint_minutes: between checkpoints inside an epoch.
        num_checkpoints: the newest that are kept.
        num_loaders: processes that read ahead.
    """

    checkpoint_minutes: float = 10.0
    num_checkpoints: int = 2
    num_loaders: int = 0


@dataclass(kw_only=True)
class Progress:
    """How far a fit is: what a checkpoint holds besides the state of torch's objects."""

    epoch: int = 0  # finished ones
    step: int = 0  # of the next
    loss_sum: float = 0.0  # of those steps' clips, in all processes
    weight_sum: float = 0.0  # of those that could be read, as `loss_sum`
    seconds: float = 0.0
    waiting_seconds: float = 0.0  # of these, for clips
    lost: list[str] = field(default_factory=list)  # in all processes, as `loss_sum`
    lines: list[dict[str, Any]] = field(default_factory=list)

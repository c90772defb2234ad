"""Charts as numbers: where each mark of an inline SVG stands; `templates/parts.html` draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 360, 210  # of a chart; a phone shows it as it is, so text stays readable
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 34  # margins
MAX_TICKS = 5
MAX_DECIMALS = 5
ROUNDING = 1e-9
MAX_DOTS = 60  # of a line; a longer one is drawn without
MAX_POINTS = 2000  # of a scatter chart


class Tick(NamedTuple):
    """A line of the grid: where it is, and what it says."""

    at: float
    text: str


class Mark(NamedTuple):
    """A dot, or a bar: where it is, how large, and what it says when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    text: str


class Line(NamedTuple):
    """A line through points, with a dot on each unless they are many."""

    name: str
    path: str
    dots: list[Mark]
    last: str  # its last value, in words


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Lines, or bars, over two axes.

    Attributes:
        title: above it.
        summary: what it shows, for those who can't see it.
        x_label: under it.
        x_ticks: of it.
        y_ticks: of it.
        lines: named.
        bars: of a histogram.
    """

    title: str
    summary: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    bars: list[Mark] = field(default_factory=list)

    width, height = WIDTH, HEIGHT
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM


class Axis:
    """A scale from values to places.

    Args:
        low: the least value.
        high: the largest; where the two differ by no more than rounding, both are moved apart.
        begin: place of the one.
        end: place of the other.
        least: below which nothing is.
        most: above which nothing is.
    """

    def __init__(
        self,
        low: float,
        high: float,
        begin: float,
        end: float,
        *,
        least: float = -math.inf,
        most: float = math.inf,
    ) -> None:
        if high - low <= ROUNDING * max(abs(low), abs(high)):
            middle, half = (low + high) / 2, 0.5 * (abs(high) or 1)
            low, high = max(least, middle - half), min(most, middle + half)
        self.low, self.high, self._begin, self._end = low, high, begin, end

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self._begin + share * (self._end - self._begin), 2)

    def ticks(self, *, is_share: bool = False, is_whole: bool = False) -> list[Tick]:
        """Round values along it."""
        locator = MaxNLocator(MAX_TICKS, integer=is_whole, min_n_ticks=1)
        values = [
            value
            for value in map(float, locator.tick_values(self.low, self.high))
            if self.low <= value <= self.high
        ]
        texts = tick_texts([100 * value for value in values] if is_share else values)
        unit = "%" if is_share else ""
        return [Tick(self(v), f"{text}{unit}") for v, text in zip(values, texts, strict=True)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Round numbers with as many decimals as they have.

    >>> tick_texts([13.9, 13.95, 14.0]), tick_texts([0, 2000]), tick_texts([0, 2e-7])
    (['13.90', '13.95', '14.00'], ['0', '2,000'], ['0', '2e-07'])
    """
    for decimals in range(MAX_DECIMALS + 1):
        if all(math.isclose(round(one, decimals), one, abs_tol=1e-12) for one in values):
            return [f"{one:,.{decimals}f}" for one in values]
    return [f"{one:.3g}" for one in values]


def number_text(value: float, *, is_share: bool = False) -> str:
    """A number as short as it may be.

    >>> number_text(1234567.0), number_text(0.25), number_text(0.1234, is_share=True)
    ('1,234,567', '0.25', '12.3%')
    """
    if is_share:
        return f"{value:.1%}".replace(".0%", "%")
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float | None]]],
    *,
    x_label: str,
    is_share: bool = False,
    is_whole: bool = False,
    from_zero: bool = False,
) -> Chart | None:
    """A chart of lines; None where there is no point.

    Args:
        title: above it.
        series: name → points (x, y); those without a finite y are left out.
        x_label: under it.
        is_share: y is a share, written in per cent.
        is_whole: x is a whole number.
        from_zero: y begins at 0.
    """
    drawn = {
        name: [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        for name, points in series.items()
    }
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return None
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in drawn.values() for _, y in points] + ([0.0] if from_zero else [])
    x_axis = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    ends_of_share: dict[str, float] = {"least": 0.0, "most": 1.0} if is_share else {}
    y_axis = Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, **ends_of_share)
    lines = []
    for name, points in drawn.items():
        places = [(x_axis(x), y_axis(y)) for x, y in points]
        path = "M" + "L".join(f"{x:g} {y:g}" for x, y in places)
        dots = [
            Mark(*place, 0, 0, f"{name}, {x:g}: {number_text(y, is_share=is_share)}")
            for place, (x, y) in zip(places, points, strict=True)
        ]
        last = number_text(points[-1][1], is_share=is_share)
        lines.append(Line(name, path, dots if len(dots) <= MAX_DOTS else [], last))
    ends = "; ".join(
        f"{name} from {number_text(points[0][1], is_share=is_share)} to "
        f"{number_text(points[-1][1], is_share=is_share)}"
        for name, points in drawn.items()
    )
    return Chart(
        title=title,
        summary=f"{title}: {ends}",
        x_label=x_label,
        x_ticks=x_axis.ticks(is_whole=is_whole),
        y_ticks=y_axis.ticks(is_share=is_share),
        lines=lines,
    )


def histogram(
    title: str, values: npt.ArrayLike, *, x_label: str, unit: str, num_bins: int = 24
) -> Chart | None:
    """A chart of how many values lie where; None where there is none.

    Args:
        title: above it.
        values: finite ones count.
        x_label: under it.
        unit: what is counted, in the plural.
        num_bins: bars.
    """
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return None
    x_axis = Axis(float(found.min()), float(found.max()), LEFT, WIDTH - RIGHT)
    if np.ptp(found) <= ROUNDING * np.abs(found).max():
        found = np.full_like(found, found[0])
    counts, edges = np.histogram(found, bins=num_bins, range=(x_axis.low, x_axis.high))
    y_axis = Axis(0.0, float(counts.max()), HEIGHT - BOTTOM, TOP)
    bars = []
    for count, low, high in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        words = f"{number_text(low)} to {number_text(high)}: {count:,} {unit}"
        width = max(0.5, x_axis(high) - x_axis(low) - 1)
        bars.append(Mark(x_axis(low), y_axis(count), width, y_axis(0) - y_axis(count), words))
    low, middle, high = np.quantile(found, [0, 0.5, 1])
    return Chart(
        title=title,
        summary=f"{title} of {len(found):,} {unit}: {number_text(low)} to {number_text(high)}, "
        f"half of them below {number_text(middle)}",
        x_label=x_label,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(is_whole=True),
        bars=bars,
    )


def scatter_chart(
    title: str, points: Sequence[tuple[float, float]], *, x_label: str, unit: str
) -> Chart | None:
    """A chart of points (x, y), and the line on which the two are equal; None without points.

    Args:
        title: above it.
        points: finite ones count; of many, `MAX_POINTS` evenly among them are drawn.
        x_label: under it.
        unit: what a point is, in the plural.
    """
    points = [point for point in points if all(map(math.isfinite, point))]
    if not points:
        return None
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    x_axis = Axis(low, high, LEFT, WIDTH - RIGHT)
    y_axis = Axis(low, high, HEIGHT - BOTTOM, TOP)
    step = max(1, -(-len(points) // MAX_POINTS))
    dots = [
        Mark(x_axis(x), y_axis(y), 0, 0, f"{number_text(x)}: {number_text(y)}")
        for x, y in points[::step]
    ]
    ends = (x_axis(x_axis.low), y_axis(y_axis.low), x_axis(x_axis.high), y_axis(y_axis.high))
    equal = "M{:g} {:g}L{:g} {:g}".format(*ends)
    return Chart(
        title=title,
        summary=f"{title}: {len(points):,} {unit}, from {number_text(low)} to {number_text(high)}",
        x_label=x_label,
        x_ticks=x_axis.ticks(),
        y_ticks=y_axis.ticks(),
        lines=[Line("", "", dots, ""), Line("equal", equal, [], "")],
    )
